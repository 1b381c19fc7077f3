"""Ranks and scales of single sites, from `lora.rank_pattern` and `lora.alpha_pattern`.

A key of a pattern is a module's canonical name or, as in peft, a regex for the end of a
Hugging Face name. The first key that matches a site gives its value.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.ranges import regex
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError

SiteKey = tuple[str, int]  # (module, layer)
Scale = float | dict[str, np.ndarray]  # of all sites, or (L,) by module
Ranks = dict[str, np.ndarray]  # (L,) by module; {} if all sites have one rank


class Scaling(NamedTuple):
    """Scale of the deltas, rank of the factors, and the ranks of single sites.

    Factors of all sites are stacked, so they have one rank R: the largest. A site of
    lower rank has zeros in the columns of A and the rows of B that it does not use.
    """

    scale: Scale
    rank: int  # R of the factors
    ranks: Ranks


# Of a model without an adapter: it has no factors, and 1 is the least rank there is.
NONE = Scaling(1.0, 1, {})


def matches(key: str, name: str) -> bool:
    """Return whether peft applies a pattern's key to the module of this name.

    The key, a regex, must match the whole name or its end after a dot.
    """
    return re.match(rf"(.*\.)?({key})$", name) is not None


def values(
    field: str,
    pattern: Mapping[str, float],
    default: float,
    of: Sites,
    names: Mapping[str, str],
) -> dict[SiteKey, float]:
    """Value of each adapted site.

    Args:
      field: name of the pattern's field in the config, for messages.
      pattern: numbers by canonical name or regex.
      default: value of the sites that no key matches.
      of: all adapted sites.
      names: full Hugging Face name of each module, with `{layer}`.

    Raises:
      UserError: a key is not a regex, or it matches no adapted site.
    """
    out, used = {}, set()
    for key in pattern:
        regex(f"config.{field}", key, inside=True)  # raises if it is not one
    for module, site in of.items():
        for layer in site.layers:
            name = names[module].format(layer=layer)
            keys = [k for k in pattern if k == module or matches(k, name)]
            used |= set(keys)  # a key that an earlier one hides counts as used
            out[module, layer] = pattern[keys[0]] if keys else default
    for key in pattern:
        if key not in used:
            known = (
                f"{m} ({names[m].format(layer=s.layers[0])})" for m, s in of.items()
            )
            raise UserError(
                f"config.{field} has {key!r}, which matches no adapted site; expected "
                "the name of one of them, or a regular expression for it: "
                f"{', '.join(known)}, in layers {_span(of)}"
            )
    return out


def _span(of: Sites) -> str:
    layers = sorted({i for site in of.values() for i in site.layers})
    return ", ".join(map(str, layers))


def ranks(
    config: LoraConfig, of: Sites, names: Mapping[str, str]
) -> dict[SiteKey, int]:
    """Rank of each adapted site; see `values`."""
    pattern = dict(config.rank_pattern)
    found = values("lora.rank_pattern", pattern, config.rank, of, names)
    return {key: int(x) for key, x in found.items()}


def alphas(
    config: LoraConfig, of: Sites, names: Mapping[str, str]
) -> dict[SiteKey, float]:
    """Alpha of each adapted site; see `values`."""
    pattern = dict(config.alpha_pattern)
    return values("lora.alpha_pattern", pattern, config.alpha, of, names)


def scaling(
    config: LoraConfig, of: Sites, num_layers: int, names: Mapping[str, str]
) -> Scaling:
    """Return the rank and scale of every site.

    Each is one number if all sites have the same.

    Args:
      config: rank, alpha, their patterns, and rsLoRA.
      of: all adapted sites.
      num_layers: number of layers L of the model.
      names: full Hugging Face name of each module, with `{layer}`.

    Raises:
      UserError: a key of a pattern is not a regex, or it matches no adapted site.
    """
    rank_of, alpha_of = ranks(config, of, names), alphas(config, of, names)
    scale_of = {
        key: lora_lib.scale(alpha_of[key], r, config.rslora)
        for key, r in rank_of.items()
    }
    several = len(set(rank_of.values())) > 1
    scales = set(scale_of.values())
    return Scaling(
        _by_module(scale_of, num_layers) if len(scales) > 1 else scales.pop(),
        max(rank_of.values()),
        _by_module(rank_of, num_layers) if several else {},
    )


def _by_module(
    found: Mapping[SiteKey, float], num_layers: int
) -> dict[str, np.ndarray]:
    """Arrays (L,) by module; 0 in the layers that have no adapter."""
    out: dict[str, np.ndarray] = {}
    for (module, layer), x in found.items():
        out.setdefault(module, np.zeros(num_layers, type(x)))[layer] = x
    return out
