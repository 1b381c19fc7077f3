"""Hugging Face names of our parameters, made from the names of a family."""

from collections.abc import Mapping
from typing import NamedTuple

from hypelora_jax import families
from hypelora_jax.families.sizes import EncoderConfig


class Entry(NamedTuple):
    """Place of a tensor: its path, its row in a stack, and whether it is transposed."""

    path: str
    layer: int | None
    turned: bool  # torch stores kernels as (O, I)


def head_names(config: EncoderConfig) -> Mapping[str, str]:
    """Name in a file of each layer of the sequence head, with prefixes."""
    return next(iter(families.of(config).heads.values()))


def names(config: EncoderConfig) -> dict[str, Entry]:
    """Entry of each tensor, in file order, by its full name with prefixes."""
    own = families.of(config).names
    found: dict[str, Entry] = {}

    def add(pattern: str, path: str, turned: bool = False) -> None:
        stacked = "{layer}" in pattern
        for layer in range(config.layers) if stacked else (None,):
            found[pattern.format(layer=layer)] = Entry(path, layer, turned)

    for path, name in own.tables.items():
        add(f"{own.prefix}{name}.weight", f"backbone/{path}/embedding")
    for path, name in own.norms.items():
        add(f"{own.prefix}{name}.weight", f"backbone/{path}/scale")
        add(f"{own.prefix}{name}.bias", f"backbone/{path}/bias")
    for module, name in own.modules.items():
        full = f"{own.prefix}{name}"
        add(f"{full}.weight", f"backbone/layers/{module}/kernel", turned=True)
        add(f"{full}.bias", f"backbone/layers/{module}/bias")
    for part, name in head_names(config).items():
        add(f"{name}.weight", f"head/{part}/kernel", turned=True)
        add(f"{name}.bias", f"head/{part}/bias")
    return found


def shapes(
    config: EncoderConfig, num_outputs: int | None
) -> dict[str, tuple[int, ...]]:
    """Shape of each path in our orientation; a stack has the shape of one layer.

    With `num_outputs` None there is no head.
    """
    family, d = families.of(config), config.width
    rows = {"word": config.vocab, "position": config.max_positions}
    rows |= {"type": config.type_vocab}
    backbone: dict[str, tuple[int, ...]] = {}
    for path in family.names.tables:
        backbone[f"{path}/embedding"] = (rows[path.removeprefix("embed/")], d)
    for norm in family.names.norms:
        backbone |= {f"{norm}/scale": (d,), f"{norm}/bias": (d,)}
    for module, kernel in family.sites(config).items():
        backbone |= {
            f"layers/{module}/kernel": kernel,
            f"layers/{module}/bias": kernel[1:],
        }
    found = {f"backbone/{path}": shape for path, shape in backbone.items()}
    if num_outputs is None:
        return found
    return found | {
        "head/dense/kernel": (d, d),
        "head/dense/bias": (d,),
        "head/out/kernel": (d, num_outputs),
        "head/out/bias": (num_outputs,),
    }
