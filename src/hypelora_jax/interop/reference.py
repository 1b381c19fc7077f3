"""Converts hyper-network states of the PyTorch reference (METHOD A.2, A.3) to ours.

torch stores weights as (out, in), and ours are (in, out). The MLP's last layer writes
the r * d values of B first and those of A after them; here they are two heads. The
conversion is linear, so it also applies to gradients and optimizer moments.
"""

import re
from collections.abc import Mapping

import numpy as np

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import HyperConfig
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.factors import groups
from hypelora_jax.trees import unflatten
from hypelora_jax.types import Params

Tensors = Mapping[str, np.ndarray]
_LAYER = r"transformer\.layers\.(\d+)\."
_TRANSFORMER = (  # (regex of the reference's name, path under hyper/trunk, transposed)
    (r"token_proj\.weight", "token_proj/kernel", True),
    (r"token_proj\.bias", "token_proj/bias", False),
    (_LAYER + r"self_attn\.out_proj\.weight", "layer{0}/attn/o/kernel", True),
    (_LAYER + r"self_attn\.out_proj\.bias", "layer{0}/attn/o/bias", False),
    (_LAYER + r"linear1\.weight", "layer{0}/up/kernel", True),
    (_LAYER + r"linear1\.bias", "layer{0}/up/bias", False),
    (_LAYER + r"linear2\.weight", "layer{0}/down/kernel", True),
    (_LAYER + r"linear2\.bias", "layer{0}/down/bias", False),
    (_LAYER + r"norm([12])\.weight", "layer{0}/norm{1}/scale", False),
    (_LAYER + r"norm([12])\.bias", "layer{0}/norm{1}/bias", False),
)


def _one_group(sites: Sites) -> str:
    found = groups(sites)
    if len(found) != 1:
        raise UserError(
            "the reference can write only sites of one shape; got "
            f"{[g.name for g in found]}"
        )
    return found[0].name


def _kernel(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight.T)


def _take(tensors: dict, name: str) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"the reference's state has no {name}, only {sorted(tensors)}")
    return tensors.pop(name)


def mlp_params(
    tensors: Tensors, config: HyperConfig, sites: Sites, rank: int
) -> Params:
    """Convert the state of the reference's MLP to `{"cond", "hyper"}`."""
    left, depth = dict(tensors), len(config.widths)
    flat = {"cond/embedding": _take(left, "embedding.weight")}
    for i in range(depth):
        flat[f"hyper/trunk/fc{i}/kernel"] = _kernel(_take(left, f"fc{i + 1}.weight"))
        flat[f"hyper/trunk/fc{i}/bias"] = _take(left, f"fc{i + 1}.bias")
    out = f"hyper/out/{_one_group(sites)}"
    weight, bias = (_take(left, f"fc{depth + 1}.{n}") for n in ("weight", "bias"))
    size_b = rank * next(iter(sites.values())).d_out
    flat[f"{out}/b/kernel"] = _kernel(weight[:size_b])
    flat[f"{out}/b/bias"] = bias[:size_b]
    if config.a == "generated":
        flat[f"{out}/a/kernel"] = _kernel(weight[size_b:])
        flat[f"{out}/a/bias"] = bias[size_b:]
    _none_left(left)
    return unflatten(flat)


def transformer_params(tensors: Tensors, config: HyperConfig, sites: Sites) -> Params:
    """Convert the state of the reference's Transformer to `{"cond", "hyper"}`."""
    left = dict(tensors)
    head = "ab" if config.a == "generated" else "b"
    out = f"hyper/out/{_one_group(sites)}/{head}"
    flat = {
        "cond/embedding": _take(left, "embedding.weight"),
        f"{out}/kernel": _kernel(_take(left, "out_proj.weight")),
        f"{out}/bias": _take(left, "out_proj.bias"),
    }
    for name in sorted(left):
        if m := re.fullmatch(_LAYER + r"self_attn\.in_proj_(weight|bias)", name):
            kind = "kernel" if m[2] == "weight" else "bias"
            for part, x in zip("qkv", np.split(left.pop(name), 3), strict=True):
                x = _kernel(x) if kind == "kernel" else x
                flat[f"hyper/trunk/layer{m[1]}/attn/{part}/{kind}"] = x
    for name in sorted(left):
        for pattern, path, transposed in _TRANSFORMER:
            if m := re.fullmatch(pattern, name):
                x = left.pop(name)
                path = f"hyper/trunk/{path.format(*m.groups())}"
                flat[path] = _kernel(x) if transposed else x
                break
    _none_left(left)
    return unflatten(flat)


def _none_left(left: dict) -> None:
    if left:
        raise UserError(
            f"the reference's state has tensors with unknown names: {sorted(left)}"
        )


def hyper_params(
    tensors: Tensors, config: HyperConfig, sites: Sites, rank: int
) -> Params:
    """Convert either hyper-network to `{"cond", "hyper"}`; all tensors are used."""
    if "fc1.weight" in tensors:
        return mlp_params(tensors, config, sites, rank)
    return transformer_params(tensors, config, sites)


def by_slot(stacked: np.ndarray, sites: Sites) -> dict[str, np.ndarray]:
    """Split an array (S, ...) in slot order into (L, ...) for each module."""
    out, start = {}, 0
    for module, site in sites.items():
        out[module] = stacked[start : start + len(site.layers)]
        start += len(site.layers)
    return out
