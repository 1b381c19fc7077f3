"""LoRA factors as plain data: sites, init, scale, placement, merge, size of the delta.

A *site* is one adapted projection (layer, module). A compact tree holds only the
adapted layers of each module, `{"q": {"a": a_LIR, "b": b_LRO}}`, L = len(site.layers);
the backbone wants all its layers, which `place` selects.

Paper: Hu et al. 2021, "LoRA", eq. 3: h = W x + (alpha / rank) B A x; here rows are
vectors, y = x W + scale (x A) B.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError
from hypelora_jax.keys import named_key
from hypelora_jax.types import MODULES, Key, Lora, Params


class Site(NamedTuple):
    """The adapted layers of one module, and its widths."""

    d_in: int
    d_out: int
    layers: tuple[int, ...]


Sites = dict[str, Site]  # in canonical order of modules


def scale(config: LoraConfig) -> float:
    """Factor of the delta: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    rsLoRA: Kalajdzievski 2023, eq. 4.
    """
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def _layers(wanted: tuple[int, ...] | None, num_layers: int, field: str) -> tuple:
    if wanted is None:
        return tuple(range(num_layers))
    for layer in wanted:
        if not 0 <= layer < num_layers:
            raise UserError(
                f"config.{field} has layer {layer}; the model has 0 to {num_layers - 1}"
            )
    if len(set(wanted)) != len(wanted) or not wanted:
        raise UserError(
            f"config.{field} is {wanted}; wanted distinct layers, one or more"
        )
    return tuple(wanted)


def _module(target: str, dims: Mapping[str, tuple], names: Mapping[str, str]) -> str:
    for module in dims:
        hf_name = names[module]
        if target in (module, hf_name) or hf_name.endswith("." + target):
            return module
    known = ", ".join(f"{m} ({names[m].rsplit('.', 1)[-1]})" for m in dims)
    raise UserError(f"config.lora.targets has {target!r}; this model has {known}")


def _match(regex: str, layers: tuple, dims: Mapping, names: Mapping) -> dict:
    try:
        pattern = re.compile(regex)
    except re.error as e:
        raise UserError(f"config.lora.targets {regex!r} is no regex: {e}") from e
    found = {
        m: tuple(i for i in layers if pattern.fullmatch(names[m].format(layer=i)))
        for m in dims
    }
    return {m: kept for m, kept in found.items() if kept}


def sites(
    config: LoraConfig,
    dims: Mapping[str, tuple[int, int]],
    num_layers: int,
    names: Mapping[str, str],
) -> Sites:
    """Adapted sites of a model, in canonical order of modules.

    Args:
      config: `targets` is a list of canonical or Hugging Face names, or one string: a
        name, "all-linear", or a regex matched whole against Hugging Face names.
      dims: (d_in, d_out) of each module the model has.
      num_layers: layers of the model.
      names: Hugging Face name of each module, with `{layer}`.

    Raises:
      UserError: a target or layer the model does not have, or nothing left to adapt.
    """
    layers = _layers(config.layers, num_layers, "lora.layers")
    targets = config.targets
    if targets == "all-linear":
        chosen = dict.fromkeys(dims, layers)
    elif isinstance(targets, str) and not re.fullmatch(r"\w+", targets):
        chosen = _match(targets, layers, dims, names)
    else:
        wanted = (targets,) if isinstance(targets, str) else targets
        chosen = {_module(t, dims, names): layers for t in wanted}
    if not chosen:
        raise UserError(
            f"config.lora.targets {targets!r} matches no projection; names look like "
            f"{next(iter(names.values())).format(layer=0)}"
        )
    return {m: Site(*dims[m], chosen[m]) for m in MODULES if m in chosen}


def restrict(
    all_sites: Sites, layers: tuple[int, ...] | None, num_layers: int
) -> Sites:
    """The sites on the given layers, in the order of that list (None: all of them)."""
    if layers is None:
        return all_sites
    layers = _layers(layers, num_layers, "hyper.layers")
    kept = {}
    for module, site in all_sites.items():
        own = tuple(i for i in layers if i in site.layers)
        if own:
            kept[module] = site._replace(layers=own)
    if not kept:
        raise UserError(f"config.hyper.layers {layers} holds no adapted layer")
    return kept


def without(all_sites: Sites, taken: Sites) -> Sites:
    """The sites of `all_sites` whose layers `taken` does not hold."""
    left = {}
    for module, site in all_sites.items():
        gone = taken[module].layers if module in taken else ()
        own = tuple(i for i in site.layers if i not in gone)
        if own:
            left[module] = site._replace(layers=own)
    return left


def draw_a(key: Key, site: Site, rank: int, fan_in: int | None = None) -> jax.Array:
    """A of each layer of a site, U(+-1/sqrt(fan_in)), float32 (L, I, R).

    This is PEFT's kaiming_uniform(a=sqrt(5)) on lora_A, whose fan-in is d_in.
    """
    bound = 1 / math.sqrt(fan_in or site.d_in)
    shape = (len(site.layers), site.d_in, rank)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def init(key: Key, of: Sites, rank: int) -> Lora:
    """Compact LoRA tree: A drawn as in PEFT, B zero, so that the delta is zero."""
    return {
        m: {
            "a": draw_a(named_key(key, m), site, rank),
            "b": jnp.zeros((len(site.layers), rank, site.d_out)),
        }
        for m, site in of.items()
    }


def fold(lora: Lora, by: float) -> Lora:
    """The tree with the scale folded into B; done once, in `predict`."""
    return {m: {"a": f["a"], "b": f["b"] * by} for m, f in lora.items()}


def place(parts: list[tuple[Sites, Lora]], num_layers: int) -> Lora:
    """All layers of each adapted module, from compact trees on disjoint layers.

    Rows are selected by a static index, never added: layers nobody adapts are zero and
    get no gradient.
    """
    modules = [m for m in MODULES if any(m in of for of, _ in parts)]
    return {
        m: {
            f: _select(
                [(of[m].layers, t[m][f]) for of, t in parts if m in of], num_layers
            )
            for f in ("a", "b")
        }
        for m in modules
    }


def _select(
    rows: list[tuple[tuple[int, ...], jax.Array]], num_layers: int
) -> jax.Array:
    """(L, ...) from compact stacks (l, ...) and the layers they belong to."""
    order = [layer for layers, _ in rows for layer in layers]
    if order == list(range(num_layers)) and len(rows) == 1:
        return rows[0][1]
    stacks = [x for _, x in rows]
    stacks.append(jnp.zeros_like(stacks[0][:1]))
    index = [order.index(i) if i in order else len(order) for i in range(num_layers)]
    return jnp.concatenate(stacks)[np.array(index)]


def merge(params: Params, lora: Lora) -> Params:
    """Backbone parameters with the (placed, folded) adapter added to the kernels."""
    layers = dict(params["layers"])
    for module, f in lora.items():
        delta_LIO = jnp.einsum("lir,lro->lio", f["a"], f["b"])
        kernel_LIO = layers[module]["kernel"]
        layers[module] = {
            **layers[module],
            "kernel": (kernel_LIO + delta_LIO).astype(kernel_LIO.dtype),
        }
    return {**params, "layers": layers}


def delta_norms(lora: Lora) -> dict[str, jax.Array]:
    """Frobenius norm of A B at each site, (L,) a module, without building A B."""
    return {
        m: jnp.sqrt(jnp.maximum(jnp.diagonal(_gram(f, f)), 0)) for m, f in lora.items()
    }


def _gram(left: dict, right: dict) -> jax.Array:
    """Inner products <A_l B_l, A_m B_m> of all pairs of layers, (L, L)."""
    aa = jnp.einsum("lir,mis->lmrs", left["a"], right["a"])
    bb = jnp.einsum("lro,mso->lmrs", left["b"], right["b"])
    return jnp.einsum("lmrs,lmrs->lm", aa, bb)


def mean_cosine(lora: Lora) -> jax.Array:
    """Mean cosine between the deltas of different sites of equal shape.

    Near 1 means that conditioning hardly matters: every site gets the same delta. NaN
    where no two sites share a shape; pairs with a zero delta are left out.
    """
    groups: dict[tuple, list[dict]] = {}
    for f in lora.values():
        groups.setdefault((f["a"].shape[1], f["b"].shape[2]), []).append(f)
    total, count = jnp.zeros(()), jnp.zeros(())
    for members in groups.values():
        stacked = {n: jnp.concatenate([f[n] for f in members]) for n in ("a", "b")}
        gram = _gram(stacked, stacked)
        norm = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
        norms = norm[:, None] * norm[None, :]
        pairs = (norms > 0) & ~jnp.eye(len(norm), dtype=bool)
        total += jnp.sum(jnp.where(pairs, gram / jnp.where(pairs, norms, 1), 0))
        count += jnp.sum(pairs)
    return total / count
