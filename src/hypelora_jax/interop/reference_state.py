"""Reads the trained hyper-network that the reference saves (METHOD A.9).

The reference's peft adapter contains a clone of the network for each adapted module,
under `...lora_A.hypernet.`. All clones must agree, and one is used (no. 12). A fixed A
and the factors to blend with are not saved (no. 11), so the user has to give them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.adapter_sections import AMode
from hypelora_jax.config.settings import BlendConfig, HyperConfig
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.interop.peft_names import site_of
from hypelora_jax.interop.reference import by_slot, hyper_params
from hypelora_jax.types import MODULES, Params

_CLONE = re.compile(r"(.+)\.lora_A(?:\.default)?\.hypernet\.(.+)")
FACTORS = ("A", "initial_A", "initial_B")  # arrays over N sites, in slot order


class ReferenceState(NamedTuple):
    """The tensors of a hyper-network's adapter, sorted by kind."""

    hyper: dict[str, np.ndarray]  # by the reference's names
    modules: tuple[str, ...]  # canonical names, canonical order
    layers: tuple[int, ...]  # layers under the hyper-network
    others: dict[str, np.ndarray]  # static factors and the head


def is_reference(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether an adapter's tensors include a hyper-network of the reference."""
    return any(_CLONE.fullmatch(name) for name in tensors)


def sort(tensors: Mapping[str, np.ndarray], family: Family) -> ReferenceState:
    """Take one hyper-network from its clones, with its modules and layers.

    Raises:
      UserError: the clones differ, or a module lacks some of the layers.
    """
    clones: dict[str, dict[str, np.ndarray]] = {}
    others = {}
    for name, x in tensors.items():
        if match := _CLONE.fullmatch(name):
            clones.setdefault(match[1], {})[match[2]] = x
        elif x.ndim:  # skip scalars, which only tell peft a dtype
            others[name] = x
    first, hyper = next(iter(clones.items()))
    for where, clone in clones.items():
        for name in sorted(hyper.keys() | clone.keys()):
            same = name in hyper and name in clone
            if not same or not np.array_equal(hyper[name], clone[name]):
                raise UserError(
                    f"the hyper-network at {where} differs from that at {first} in "
                    f"{name}; expected one network, saved once for each module"
                )
    found = []
    for name in clones:
        site = site_of(name, family)
        if site is None:
            known = ", ".join(family.names.modules.values())
            raise UserError(
                f"{name} is not a projection of this base model; expected one of "
                f"{known}"
            )
        found.append(site)
    modules = tuple(m for m in MODULES if any(m == n for n, _ in found))
    layers = tuple(sorted({layer for _, layer in found}))
    if len(found) != len(modules) * len(layers):
        raise UserError(
            f"the file has the hyper-network at {len(found)} modules; expected it at "
            f"each of {modules} in each of the layers {layers}"
        )
    return ReferenceState(hyper, modules, layers, others)


def config_of(
    state: ReferenceState, rank: int, width: int, a: AMode, heads: int
) -> tuple[str, HyperConfig]:
    """Infer (method, config) from the shapes of a saved network.

    Args:
      state: the sorted state.
      rank: r of the adapter's config.
      width: d, input and output width of every site.
      a: "fixed" or "random", for a network that does not write A.
      heads: attention heads of the Transformer, which the shapes do not tell.

    Raises:
      UserError: the shapes fit no network of the reference.
    """
    t, slots = state.hyper, len(state.modules) * len(state.layers)
    if "embedding.weight" not in t:
        raise UserError("the hyper-network has no embedding.weight; expected one")
    rows, cond_dim = t["embedding.weight"].shape
    common = {"init": "reference", "cond_dim": cond_dim, "layers": state.layers}
    if "fc1.weight" in t:
        depth = sum(bool(re.fullmatch(r"fc\d+\.weight", name)) for name in t)
        shapes = [t[f"fc{i + 1}.weight"].shape for i in range(depth)]
        twice, rest = divmod(shapes[-1][0], rank * width)
        common |= {"widths": tuple(shape[0] for shape in shapes[:-1])}
        method, d_in = "hyper_mlp", shapes[0][1]
    else:
        twice, rest = divmod(rows, slots)
        shape, method = t["token_proj.weight"].shape, "hyper_transformer"
        ups = [n for n in t if re.fullmatch(r"transformer\..*linear1\.weight", n)]
        common |= {"width": shape[0], "depth": len(ups), "ff": t[ups[0]].shape[0]}
        common |= {"heads": heads}
        d_in = shape[1]
    if rest or twice not in (1, 2):
        raise UserError(
            f"the hyper-network does not write rank {rank} for {slots} sites of width "
            f"{width}; expected the adapter_config.json and --model it was saved with"
        )
    a = "generated" if twice == 2 else a
    return method, HyperConfig(a=a, a_input=d_in != cond_dim, **common)


def params_of(
    state: ReferenceState,
    hyper: HyperConfig,
    blend: BlendConfig,
    sites: Sites,
    rank: int,
    arrays: Mapping[str, np.ndarray],
) -> Params:
    """Make `{"cond", "hyper"}` from a state and the arrays that the user gives.

    With hyper.a=random and no A given, `hyper/a` is absent, because any draw will do.

    Raises:
      UserError: a required array is missing, or an array has another shape.
    """
    params: Params = hyper_params(state.hyper, hyper, sites, rank)
    site, n = next(iter(sites.values())), sum(len(s.layers) for s in sites.values())
    a_shape, b_shape = (n, site.d_in, rank), (n, rank, site.d_out)

    def given(name: str, shape: tuple, why: str) -> dict[str, Any]:
        if name not in arrays:
            raise UserError(
                f"{why}, and the reference does not save {name}; expected "
                f"--factors=FILE.npz with {name} of shape {shape}, in slot order"
            )
        if arrays[name].shape != shape:
            raise UserError(f"{name} has shape {arrays[name].shape}; expected {shape}")
        return by_slot(np.asarray(arrays[name], np.float32), sites)

    if hyper.a == "fixed" or (hyper.a == "random" and "A" in arrays):
        why = "this network does not write A (with hyper.a=random any A would do)"
        params["hyper"]["a"] = given("A", a_shape, why)
    start = {}
    if blend.a != "replace":
        start["a"] = given("initial_A", a_shape, f"config.blend.a is {blend.a}")
    if blend.b != "replace":
        zero = {} if blend.b == "multiply" else {"initial_B": np.zeros(b_shape)}
        arrays = {**zero, **arrays}  # peft's B starts at zero
        start["b"] = given("initial_B", b_shape, f"config.blend.b is {blend.b}")
    if start:
        params["hyper"]["init"] = start
    return params
