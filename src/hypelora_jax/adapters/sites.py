"""Sites, the projections of a model that an adapter adapts.

A *site* is one adapted projection (layer, module). Everything here is static: names,
layers and widths, never an array.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

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
                f"config.{field} has layer {layer}; the model has layers 0 to "
                f"{num_layers - 1}"
            )
    if len(set(wanted)) != len(wanted) or not wanted:
        raise UserError(
            f"config.{field} is {wanted}; expected one or more layers, each given once"
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
        raise UserError(
            f"config.lora.targets {regex!r} is not a regular expression: {e}"
        ) from e
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
    """Find the adapted sites of a model, in canonical order of modules.

    Args:
      config: `targets` is a list of canonical or Hugging Face names, or one string: a
        name, "all-linear", or a regex matched whole against Hugging Face names.
      dims: (d_in, d_out) of each module the model has.
      num_layers: number of layers of the model.
      names: Hugging Face name of each module, with `{layer}`.

    Raises:
      UserError: the model lacks a target or layer, or nothing is left to adapt.
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
            f"config.lora.targets {targets!r} matches no projection; the names look "
            f"like {next(iter(names.values())).format(layer=0)}"
        )
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
