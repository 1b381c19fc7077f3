"""Converts a peft LoRA adapter to factors of one rank and a head, and checks both."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax import families
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.adapters import patterns
from hypelora_jax.adapters.sites import Site, Sites
from hypelora_jax.config.ranges import number_pairs, regex
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.peft import CONFIG
from hypelora_jax.interop.peft_names import endings, site_of, target_regex
from hypelora_jax.interop.tensor_paths import names
from hypelora_jax.types import MODULES, Params

# Fields of peft 0.21 that may be set. Any other field makes the adapter another kind.
_READ = "peft_type r lora_alpha use_rslora lora_dropout rank_pattern alpha_pattern"
_READ += " bias init_lora_weights base_model_name_or_path revision"
# the tensors show which modules these have chosen
_CHOSEN = "target_modules exclude_modules layers_to_transform layers_pattern"
_CHOSEN += " modules_to_save task_type ensure_weight_tying"
# about starts that `init_lora_weights` names, about peft itself, or off by default
_UNREAD = "eva_config corda_config lora_ga_config loftq_config inference_mode"
_UNREAD += " auto_mapping peft_version runtime_config megatron_core qalora_group_size"
_KNOWN = {*_READ.split(), *_CHOSEN.split(), *_UNREAD.split()}
_PLAIN_INITS = ("gaussian", "eva", "orthogonal")  # the base's weights stay the same


class Adapter(NamedTuple):
    """A peft LoRA adapter in our terms."""

    lora: LoraConfig
    sites: Sites
    factors: dict[str, dict[str, np.ndarray]]  # compact
    head: Params  # the parts of the head that the file has
    head_deltas: dict[str, np.ndarray]  # part of the head -> delta of its kernel


def check_kind(fields: Mapping[str, Any]) -> None:
    """Check that an adapter is plain LoRA.

    Raises:
      UserError: it is not; the message names the field and what to do.
    """
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{CONFIG} has peft_type={kind!r}; expected LORA")
    for name, value in fields.items():
        if value and name not in _KNOWN:
            raise UserError(
                f"{CONFIG} has {name}={value!r}; expected plain LoRA: merge that "
                "adapter with peft (merge_and_unload) and use it as --model"
            )
    for name in ("r", "lora_alpha"):
        if type(got := fields.get(name)) not in (int, float):
            raise UserError(f"{CONFIG} has {name}={got!r}; expected a number")
    if fields.get("bias", "none") != "none":
        raise UserError(
            f"{CONFIG} has bias={fields['bias']!r}; expected none, because the "
            "backbone is frozen"
        )
    start = fields.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _PLAIN_INITS:
        raise UserError(
            f"{CONFIG} has init_lora_weights={start!r}, which changes the base's "
            "weights; expected plain LoRA. Convert it with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _pairs(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{"A", "B"} of each module with LoRA factors, after a check that they fit."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, x in tensors.items():
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            pairs.setdefault(match[1], {})[match[2]] = x
    for name, pair in pairs.items():
        if len(pair) < 2:
            raise UserError(f"{name} has only lora_{min(pair)}; expected both A and B")
        ranks = pair["A"].shape[0], pair["B"].shape[-1]
        if pair["A"].ndim != 2 or pair["B"].ndim != 2 or ranks[0] != ranks[1]:
            raise UserError(
                f"{name} has lora_A {pair['A'].shape} and lora_B {pair['B'].shape}; "
                "expected (r, d_in) and (d_out, r)"
            )
    return pairs


def _value(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """Value of the first key that matches the name, as in peft."""
    found = (x for key, x in pattern.items() if patterns.matches(key, name))
    return next(found, default)


def _pattern(fields: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A pattern of the adapter, with keys that are regexes, and numbers."""
    where = f"{CONFIG}: {field}"
    pattern = dict(number_pairs(where, fields.get(field) or {}))
    for key in pattern:
        regex(where, key)
    return pattern


def _scaling_of(fields: Mapping[str, Any], name: str, rank: int) -> tuple[int, float]:
    """(rank, alpha) that peft gives to the module of this name.

    Raises:
      UserError: its factors have another rank.
    """
    wanted = _value(_pattern(fields, "rank_pattern"), name, fields["r"])
    if rank != wanted:
        raise UserError(
            f"{name} has factors of rank {rank}, but {CONFIG} gives it rank {wanted} "
            "(r, rank_pattern); expected the config that was saved with the factors"
        )
    alphas = _pattern(fields, "alpha_pattern")
    return rank, float(_value(alphas, name, fields["lora_alpha"]))


def from_peft(
    config: EncoderConfig, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Adapter:
    """Convert an adapter to compact factors of one rank, and its part of the head.

    Sites below the largest rank are padded with zeros, which `to_peft` removes. The
    config names the sites whose rank or alpha is not that of all.

    Raises:
      UserError: the adapter is not plain LoRA, or its tensors do not fit the base.
    """
    check_kind(fields)
    found, family = _pairs(tensors), families.of(config)
    site = {name: site_of(name, family) for name in found}
    own = {key: found[name] for name, key in site.items() if key is not None}
    if not own:
        raise UserError("the adapter has no LoRA factors of the encoder; expected some")
    scaling = {
        name: _scaling_of(fields, name, pair["A"].shape[0])
        for name, pair in found.items()
    }
    sites, rank = _sites(own, config), max(p["A"].shape[0] for p in own.values())
    padded = {
        key: _filled(name, found[name], key, config, rank)
        for name, key in site.items()
        if key is not None
    }
    factors = {
        m: {f: np.stack([padded[m, i][f] for i in s.layers]) for f in "ab"}
        for m, s in sites.items()
    }
    rest = {n: pair for n, pair in found.items() if site[n] is None}
    deltas = _head_deltas(config, fields, rest)
    head = head_of(config, {n: x for n, x in tensors.items() if ".lora_" not in n})
    numbers = {key: scaling[name] for name, key in site.items() if key is not None}
    lora = _lora(fields, numbers, family)
    return Adapter(_with_targets(lora, sites, config), sites, factors, head, deltas)


def _lora(
    fields: Mapping[str, Any],
    numbers: Mapping[tuple[str, int], tuple[int, float]],
    family: Family,
) -> LoraConfig:
    """The config without targets, from the (rank, alpha) of each site."""
    rank, alpha, names = fields["r"], float(fields["lora_alpha"]), family.names.full
    named = {names[m].format(layer=i): own for (m, i), own in sorted(numbers.items())}
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        rslora=bool(fields.get("use_rslora")),
        dropout=float(fields.get("lora_dropout") or 0),
        rank_pattern={n: r for n, (r, _) in named.items() if r != rank},
        alpha_pattern={n: a for n, (_, a) in named.items() if a != alpha},
    )


def _filled(
    name: str,
    pair: Mapping[str, np.ndarray],
    site: tuple[str, int],
    config: EncoderConfig,
    rank: int,
) -> dict[str, np.ndarray]:
    """A (I, R) and B (R, O) of a site from peft's tensors, padded to rank R."""
    module, layer = site
    d_in, d_out = families.of(config).sites(config)[module]
    got = pair["A"].shape[1], pair["B"].shape[0]
    if got != (d_in, d_out) or layer >= config.layers:
        raise UserError(
            f"{name} adapts {got[0]} to {got[1]}, but this base model has "
            f"{config.layers} layers and {d_in} to {d_out} there; give the adapter's "
            "own --model"
        )
    for x in pair.values():
        if x.dtype != np.float32 or not np.isfinite(x).all():
            raise UserError(
                f"{name} has values that are not finite floats; expected a whole "
                "adapter"
            )
    a, b = pair["A"].T, pair["B"].T
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
                f"the adapter has {name!r}; expected only LoRA factors and the head "
                f"of a {config.family} sequence classifier"
            )
        part, leaf = known[name]
        head.setdefault(part, {})[leaf] = x.T.copy() if leaf == "kernel" else x
    for part, leaves in head.items():
        if len(leaves) < 2:
            raise UserError(
                f"the adapter has only {min(leaves)} of the head's {part}; expected "
                "weight and bias"
            )
    return head


def _head_deltas(
    config: EncoderConfig, fields: Mapping[str, Any], pairs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Deltas of factors on dense layers of the head.

    They are added to its kernels, because here the head trains without factors.
    """
    known, out = _head_parts(config), {}
    for name, pair in pairs.items():
        if f"{name}.weight" not in known:
            raise UserError(
                f"the adapter adapts {name}; expected projections of the encoder: "
                f"{', '.join(endings(families.of(config)).values())}"
            )
        rank, alpha = _scaling_of(fields, name, pair["A"].shape[0])
        scale = lora_lib.scale(alpha, rank, bool(fields.get("use_rslora")))
        delta = scale * (pair["B"].astype(np.float64) @ pair["A"]).T
        out[known[f"{name}.weight"][0]] = delta
    return out
