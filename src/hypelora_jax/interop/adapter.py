"""Converts a peft LoRA adapter to factors of one rank and a head, and checks both."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from hypelora_jax import families
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.adapters.sites import Site, Sites
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.peft_config import CONFIG, MERGE, PeftConfig
from hypelora_jax.interop.peft_names import (
    check_complete,
    endings,
    site_of,
    target_regex,
)
from hypelora_jax.interop.tensor_paths import names
from hypelora_jax.types import MODULES, Params


class Adapter(NamedTuple):
    """A peft LoRA adapter in our terms."""

    lora: LoraConfig
    sites: Sites
    factors: dict[str, dict[str, np.ndarray]]  # compact
    head: Params  # the parts of the head that the file has
    head_deltas: dict[str, np.ndarray]  # part of the head -> delta of its kernel


class Factors(NamedTuple):
    """LoRA factors as peft saves them: A (r, d_in) and B (d_out, r)."""

    a: np.ndarray
    b: np.ndarray

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.a.shape[0]


def _sorted(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, Factors], dict[str, np.ndarray]]:
    """(factors of each module, all other tensors), after a check that factors fit."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    others = {}
    for name, x in tensors.items():
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            pairs.setdefault(match[1], {})[match[2]] = x
        else:
            others[name] = x
    for name, pair in pairs.items():
        if len(pair) < 2:
            raise UserError(f"{name} has only lora_{min(pair)}; expected both A and B")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise UserError(
                f"{name} has lora_A {a.shape} and lora_B {b.shape}; expected (r, d_in) "
                "and (d_out, r)"
            )
    return {name: Factors(pair["A"], pair["B"]) for name, pair in pairs.items()}, others


def _check_rank(fields: PeftConfig, name: str, rank: int) -> None:
    """Check that factors have the rank that the config gives to their module."""
    if rank != (wanted := fields.rank_of(name)):
        raise UserError(
            f"{name} has factors of rank {rank}, but {CONFIG} gives it rank {wanted:g} "
            "(r, rank_pattern); expected the config that was saved with the factors"
        )


def from_peft(
    config: EncoderConfig,
    fields: PeftConfig,
    tensors: Mapping[str, np.ndarray],
    generated: Collection[str] = (),
) -> Adapter:
    """Convert an adapter to compact factors of one rank, and its part of the head.

    Sites below the largest rank are padded with zeros, which `to_peft` removes. The
    config names the sites whose rank or alpha is not that of all.

    Args:
      config: the base model.
      fields: the adapter's config.
      tensors: by plain name; every one of them is used.
      generated: modules whose factors are not in `tensors`, because a hyper-network
        writes them.

    Raises:
      UserError: a tensor is unknown, does not fit the base or the config, or is missing
        though the config names its module.
    """
    found, others = _sorted(tensors)
    family, head = families.of(config), head_of(config, others)
    site = {name: site_of(name, family) for name in found}
    deltas = {name: pair for name, pair in found.items() if site[name] is None}
    head_deltas = _head_deltas(config, fields, deltas)
    for name, pair in found.items():
        _check_rank(fields, name, pair.rank)
    check_complete(config, fields, {*found, *generated}, others)
    own = {key: name for name, key in site.items() if key is not None}
    if not own and not generated:
        raise UserError("the adapter has no LoRA factors of the encoder; expected some")
    if len(own) < len(site) - len(deltas):
        raise UserError(
            "the adapter has a projection with and without the prefix "
            f"{family.names.prefix}; expected each projection once"
        )
    sites, rank = _sites(own, config), max([found[n].rank for n in own.values()] or [1])
    padded = {
        key: _filled(name, found[name], key, config, rank) for key, name in own.items()
    }
    factors = {
        m: {f: np.stack([padded[m, i][f] for i in s.layers]) for f in "ab"}
        for m, s in sites.items()
    }
    numbers = {key: (found[n].rank, fields.alpha_of(n)) for key, n in own.items()}
    lora = _lora(fields, numbers, family)
    lora = _with_targets(lora, sites, config) if sites else lora
    return Adapter(lora, sites, factors, head, head_deltas)


def _lora(
    fields: PeftConfig,
    numbers: Mapping[tuple[str, int], tuple[int, float]],
    family: Family,
) -> LoraConfig:
    """The config without targets, from the (rank, alpha) of each site."""
    rank, alpha, names = fields.rank, fields.alpha, family.names.full
    named = {names[m].format(layer=i): own for (m, i), own in sorted(numbers.items())}
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        rslora=fields.rslora,
        dropout=fields.dropout,
        rank_pattern={n: r for n, (r, _) in named.items() if r != rank},
        alpha_pattern={n: a for n, (_, a) in named.items() if a != alpha},
    )


def _filled(
    name: str,
    pair: Factors,
    site: tuple[str, int],
    config: EncoderConfig,
    rank: int,
) -> dict[str, np.ndarray]:
    """A (I, R) and B (R, O) of a site from peft's tensors, padded to rank R."""
    module, layer = site
    d_in, d_out = families.of(config).sites(config)[module]
    got = pair.a.shape[1], pair.b.shape[0]
    if got != (d_in, d_out) or layer >= config.layers:
        raise UserError(
            f"{name} adapts {got[0]} to {got[1]}, but this base model has "
            f"{config.layers} layers and {d_in} to {d_out} there; give the adapter's "
            "own --model"
        )
    a, b = pair.a.T, pair.b.T
    more = rank - a.shape[1]
    return {"a": np.pad(a, ((0, 0), (0, more))), "b": np.pad(b, ((0, more), (0, 0)))}


def _sites(adapted: Iterable[tuple[str, int]], config: EncoderConfig) -> Sites:
    dims, adapted = families.of(config).sites(config), list(adapted)
    layers = {m: tuple(sorted(i for n, i in adapted if n == m)) for m in MODULES}
    return {m: Site(*dims[m], own) for m, own in layers.items() if own}


def _with_targets(lora: LoraConfig, sites: Sites, config: EncoderConfig) -> LoraConfig:
    """Add targets and layers to the config that name exactly these sites."""
    layers = {site.layers for site in sites.values()}
    if len(layers) > 1:
        regex = target_regex(sites, families.of(config))
        return dataclasses.replace(lora, targets=regex)
    own = layers.pop()
    every = own == tuple(range(config.layers))
    return dataclasses.replace(
        lora, targets=tuple(sites), layers=None if every else own
    )


def _head_parts(config: EncoderConfig) -> dict[str, tuple[str, str]]:
    """(part, leaf) of each tensor of the head, by its names with and without prefix."""
    prefix, found = families.of(config).names.prefix, {}
    for name, entry in names(config).items():
        if entry.path.startswith("head/"):
            _, part, leaf = entry.path.split("/")
            found[name] = found[name.removeprefix(prefix)] = part, leaf
    return found


def head_of(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> Params:
    """Parts of the head, from the modules that peft saved whole."""
    known = _head_parts(config)
    head: Params = {}
    for name, x in tensors.items():
        if name not in known:
            raise UserError(
                f"the adapter has {name!r}; expected only lora_A and lora_B of "
                f"projections, and the head of a {config.family} sequence classifier. "
                f"{MERGE}"
            )
        part, leaf = known[name]
        if leaf in head.get(part, {}):
            raise UserError(
                f"the adapter has {name!r} with and without the prefix of "
                f"{config.family}; expected it once"
            )
        head.setdefault(part, {})[leaf] = x.T.copy() if leaf == "kernel" else x
    for part, leaves in head.items():
        if len(leaves) < 2:
            raise UserError(
                f"the adapter has only {min(leaves)} of the head's {part}; expected "
                "weight and bias"
            )
    return head


def _head_deltas(
    config: EncoderConfig, fields: PeftConfig, pairs: Mapping[str, Factors]
) -> dict[str, np.ndarray]:
    """Deltas of factors on dense layers of the head.

    They are added to its kernels, because here the head trains without factors.
    """
    known, out = _head_parts(config), {}
    for name, pair in pairs.items():
        if f"{name}.weight" not in known:
            raise UserError(
                f"the adapter adapts {name}; expected projections of the encoder: "
                f"{', '.join(endings(families.of(config)).values())}. {MERGE}"
            )
        scale = lora_lib.scale(fields.alpha_of(name), pair.rank, fields.rslora)
        delta = scale * (pair.b.astype(np.float64) @ pair.a).T
        out[known[f"{name}.weight"][0]] = delta
    return out
