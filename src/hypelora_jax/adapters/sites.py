"""Sites, the projections of a model that an adapter adapts.

A *site* is one adapted projection (layer, module). Everything here is static: names,
layers and widths, never an array.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from hypelora_jax.config.ranges import regex
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError
from hypelora_jax.types import MODULES


class Site(NamedTuple):
    """The adapted layers of one module, and its widths."""

    d_in: int
    d_out: int
    layers: tuple[int, ...]


Sites = dict[str, Site]  # in canonical order of modules


def _layers(wanted: tuple[int, ...] | None, num_layers: int, field: str) -> tuple:
    if wanted is None:
        return tuple(range(num_layers))
    for layer in wanted:
        if not 0 <= layer < num_layers:
            raise UserError(
                f"config.{field} has layer {layer}; expected 0 to {num_layers - 1}, "
                "the layers of this model"
            )
    if len(set(wanted)) != len(wanted) or not wanted:
        raise UserError(
            f"config.{field} is {wanted}; expected one or more layers, each given once"
        )
    return tuple(wanted)


def _modules(
    target: str, dims: Mapping[str, tuple], names: Mapping[str, str], field: str
) -> list[str]:
    """The modules with this canonical name, or whose name ends so."""
    found = [
        m for m in dims if target in (m, names[m]) or names[m].endswith("." + target)
    ]
    if found:
        return found
    known = ", ".join(f"{m} ({names[m].rsplit('.', 1)[-1]})" for m in dims)
    raise UserError(
        f"config.{field} has {target!r}; expected modules of this model: {known}"
    )


def _match(
    pattern: re.Pattern, layers: tuple, dims: Mapping, names: Mapping
) -> dict[str, tuple[int, ...]]:
    found = {
        m: tuple(i for i in layers if pattern.fullmatch(names[m].format(layer=i)))
        for m in dims
    }
    return {m: kept for m, kept in found.items() if kept}


def _chosen(
    field: str,
    wanted: tuple[str, ...] | str,
    layers: tuple[int, ...],
    dims: Mapping[str, tuple[int, int]],
    names: Mapping[str, str],
    first: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Layers of each module that the names or the regex of a field choose.

    With `first`, a name that several modules share chooses only the first of them.
    """
    if wanted == "all-linear":
        return dict.fromkeys(dims, layers)
    if isinstance(wanted, str) and not re.fullmatch(r"\w+", wanted):
        return _match(regex(f"config.{field}", wanted), layers, dims, names)
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    found = [_modules(t, dims, names, field) for t in wanted]
    return {m: layers for own in found for m in (own[:1] if first else own)}


def _without(
    chosen: dict[str, tuple[int, ...]],
    gone: dict[str, tuple[int, ...]],
    exclude: tuple[str, ...] | str,
) -> dict[str, tuple[int, ...]]:
    """Chosen sites without those of `lora.exclude`, which must be some of them."""
    left = {
        m: tuple(i for i in own if i not in gone.get(m, ()))
        for m, own in chosen.items()
    }
    if left == chosen:
        raise UserError(
            f"config.lora.exclude {exclude!r} matches no target; expected some of "
            f"{', '.join(chosen)}, or no exclude"
        )
    left = {m: own for m, own in left.items() if own}
    if not left:
        raise UserError(
            f"config.lora.exclude {exclude!r} leaves no target; expected it to leave "
            f"at least one of {', '.join(chosen)}"
        )
    return left


def sites(
    config: LoraConfig,
    dims: Mapping[str, tuple[int, int]],
    num_layers: int,
    names: Mapping[str, str],
) -> Sites:
    """Find the adapted sites of a model, in canonical order of modules.

    Args:
      config: `targets` is a list of canonical or Hugging Face names, or one string: a
        name, "all-linear", or a regex matched whole against Hugging Face names.
        `exclude` has the same form, and takes sites away from the targets.
      dims: (d_in, d_out) of each module the model has.
      num_layers: number of layers of the model.
      names: Hugging Face name of each module, with `{layer}`.

    Raises:
      UserError: the model lacks a target or layer, `exclude` matches no target, or
        nothing is left to adapt.
    """
    layers = _layers(config.layers, num_layers, "lora.layers")
    # `first` is what shared names have always meant in targets; peft adapts them all
    chosen = _chosen("lora.targets", config.targets, layers, dims, names, first=True)
    if not chosen:
        raise UserError(
            f"config.lora.targets {config.targets!r} matches no projection; expected a "
            "regular expression for whole names, such as "
            f"{next(iter(names.values())).format(layer=0)}"
        )
    if config.exclude:
        gone = _chosen("lora.exclude", config.exclude, layers, dims, names)
        chosen = _without(chosen, gone, config.exclude)
    return {m: Site(*dims[m], chosen[m]) for m in MODULES if m in chosen}


def restrict(
    all_sites: Sites, layers: tuple[int, ...] | None, num_layers: int
) -> Sites:
    """Keep the sites on the given layers, in the order of that list; None keeps all."""
    if layers is None:
        return all_sites
    layers = _layers(layers, num_layers, "hyper.layers")
    kept = {}
    for module, site in all_sites.items():
        own = tuple(i for i in layers if i in site.layers)
        if own:
            kept[module] = site._replace(layers=own)
    if not kept:
        raise UserError(
            f"config.hyper.layers {layers} contains no layer that has an adapter; "
            "expected at least one"
        )
    return kept


def without(all_sites: Sites, taken: Sites) -> Sites:
    """Remove the layers that are in `taken` from `all_sites`."""
    left = {}
    for module, site in all_sites.items():
        gone = taken[module].layers if module in taken else ()
        own = tuple(i for i in site.layers if i not in gone)
        if own:
            left[module] = site._replace(layers=own)
    return left
