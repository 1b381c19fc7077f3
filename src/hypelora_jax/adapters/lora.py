"""LoRA factors as plain data: init, scale, placement, merge.

A compact tree has only the adapted layers of each module,
`{"q": {"a": a_LIR, "b": b_LRO}}` with L = len(site.layers). The backbone needs all its
layers, which `place` builds.

Paper: Hu et al. 2021, "LoRA", eq. 3: h = W x + (alpha / rank) B A x. Here vectors are
rows, so y = x W + scale (x A) B.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.adapters.sites import Site, Sites
from hypelora_jax.keys import named_key
from hypelora_jax.types import MODULES, Key, Lora, Params


def scale(alpha: float, rank: int, rslora: bool = False) -> float:
    """Factor of the delta: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    rsLoRA: Kalajdzievski 2023, eq. 4.
    """
    return alpha / (math.sqrt(rank) if rslora else rank)


def draw_a(key: Key, site: Site, rank: int, fan_in: int | None = None) -> jax.Array:
    """Draw A of each layer of a site, U(+-1/sqrt(fan_in)), float32 (L, I, R).

    This is PEFT's kaiming_uniform(a=sqrt(5)) on lora_A, whose fan-in is d_in.
    """
    return uniform(key, (len(site.layers), site.d_in, rank), fan_in or site.d_in)


def uniform(key: Key, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """Draw from U(+-1/sqrt(fan_in)), float32, as torch initialises linear layers."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def init(key: Key, of: Sites, rank: int) -> Lora:
    """Compact LoRA tree: A is drawn as in PEFT and B is zero, so the delta is zero."""
    return {
        m: {
            "a": draw_a(named_key(key, m), site, rank),
            "b": jnp.zeros((len(site.layers), rank, site.d_out)),
        }
        for m, site in of.items()
    }


def masked(lora: Lora, of: Sites, ranks: Mapping[str, np.ndarray]) -> Lora:
    """Zero what each site's factors have beyond its own rank; {} changes nothing.

    Args:
      lora: compact factors, a_LIR and b_LRO.
      of: their sites.
      ranks: the rank of each of the model's layers, by module.
    """
    if not ranks:
        return lora
    out = {}
    for m, f in lora.items():
        own_L1 = ranks[m][list(of[m].layers)][:, None]
        keep_LR = np.arange(f["b"].shape[1])[None, :] < own_L1
        out[m] = {
            "a": jnp.where(keep_LR[:, None, :], f["a"], 0),
            "b": jnp.where(keep_LR[:, :, None], f["b"], 0),
        }
    return out


def fold(lora: Lora, by: float | Mapping[str, np.ndarray]) -> Lora:
    """Fold the scale into B of a placed tree; `predict` does this once.

    `by` is one number, or the scale of each layer by module.
    """

    def own(m: str, b: jax.Array) -> jax.Array | float:
        if isinstance(by, Mapping):
            return jnp.asarray(by[m], b.dtype).reshape(-1, *(1,) * (b.ndim - 1))
        return by

    return {m: {"a": f["a"], "b": f["b"] * own(m, f["b"])} for m, f in lora.items()}


def repeated(lora: Lora, conditions: int) -> Lora:
    """Repeat the factors for each of U conditions: a_LIR becomes a_LUIR."""

    def each(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:, None], (len(x), conditions, *x.shape[1:]))

    return jax.tree.map(each, lora)


def place(parts: list[tuple[Sites, Lora]], num_layers: int) -> Lora:
    """Build all layers of each adapted module from compact trees on disjoint layers.

    Rows are selected by a static index and never added. Layers without an adapter are
    zero and get no gradient.
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
    """Build (L, ...) from compact stacks (l, ...) and the layers they belong to."""
    order = [layer for layers, _ in rows for layer in layers]
    if order == list(range(num_layers)) and len(rows) == 1:
        return rows[0][1]
    stacks = [x for _, x in rows]
    stacks.append(jnp.zeros_like(stacks[0][:1]))
    index = [order.index(i) if i in order else len(order) for i in range(num_layers)]
    return jnp.concatenate(stacks)[np.array(index)]


def merge(params: Params, lora: Lora) -> Params:
    """Add a placed and folded adapter to the kernels of the backbone."""
    layers = dict(params["layers"])
    for module, f in lora.items():
        delta_LIO = jnp.einsum("lir,lro->lio", f["a"], f["b"])
        kernel_LIO = layers[module]["kernel"]
        layers[module] = {
            **layers[module],
            "kernel": (kernel_LIO + delta_LIO).astype(kernel_LIO.dtype),
        }
    return {**params, "layers": layers}


def has_conditions(factors: Lora) -> bool:
    """Whether placed factors have the axis U (a_LUIR instead of a_LIR)."""
    return any(x.ndim == 4 for x in jax.tree.leaves(factors))
