"""Reads and writes the two files of a Hugging Face peft adapter.

`adapter_config.json` gives rank, scale and target modules. `adapter_model.safetensors`
has lora_A (r, I) and lora_B (O, r) of each site, and the modules that are saved whole,
which here is the head. Our factors are (I, R) and (R, O); both forms are unscaled.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from hypelora_jax import families, files
from hypelora_jax.adapters import patterns
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop import peft_config
from hypelora_jax.interop.peft_config import CONFIG, PeftConfig
from hypelora_jax.interop.peft_names import ROOT, plain, targets
from hypelora_jax.interop.tensor_paths import head_names
from hypelora_jax.interop.tensors import check_floats, read_fields, read_file
from hypelora_jax.types import Lora, Params

TENSORS = "adapter_model.safetensors"
RECORD = "hypelora.json"  # of our exports: config, task and calibrator of the run


def whole_modules(config: EncoderConfig) -> list[str]:
    """Modules that peft saves whole: its two classifier names and the head's others."""
    prefix, found = families.of(config).names.prefix, ["classifier", "score"]
    for name in head_names(config).values():
        module = name.removeprefix(prefix).split(".")[0]
        found += [] if module in found else [module]
    return found


def make_config(
    lora: LoraConfig,
    sites: Sites,
    ranks: Mapping[str, int],
    config: EncoderConfig,
    base: str,
    revision: str = "",
) -> dict[str, Any]:
    """Fields of adapter_config.json.

    Args:
      lora: rank, alpha, their patterns, rsLoRA and dropout.
      sites: all adapted sites.
      ranks: rank of each site in the file, by its name with the family's prefix.
      config: the base model.
      base: `base_model_name_or_path`.
      revision: commit of a hub model, or "".
    """
    alphas = _alphas(lora, sites, ranks, families.of(config))
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "revision": revision or None,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "use_rslora": lora.rslora,
        "lora_dropout": lora.dropout,
        **targets(sites, families.of(config), config.layers),
        "modules_to_save": whole_modules(config),
        "rank_pattern": {n: r for n, r in ranks.items() if r != lora.rank},
        "alpha_pattern": {n: _number(a) for n, a in alphas.items() if a != lora.alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _number(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _alphas(
    lora: LoraConfig, sites: Sites, ranks: Mapping[str, int], family: Family
) -> dict[str, float]:
    """Alpha of each site by its name, for the ranks in the file.

    A site whose last components are zero is written with a lower rank than it has in
    the run, and with the alpha that leaves its scale as it is.
    """
    names, out = family.names.full, {}
    alpha_of = patterns.alphas(lora, sites, names)
    for (module, layer), rank in patterns.ranks(lora, sites, names).items():
        name = names[module].format(layer=layer)
        share = ranks[name] / rank
        by = math.sqrt(share) if lora.rslora else share
        out[name] = alpha_of[module, layer] * by
    return out


def _used_rank(a_IR: np.ndarray, b_RO: np.ndarray) -> int:
    """Rank without trailing components that are zero in both factors; at least 1."""
    used = np.any(a_IR != 0, axis=0) | np.any(b_RO != 0, axis=1)
    return max(1, int(np.max(np.flatnonzero(used), initial=0)) + 1)


def to_peft(
    config: EncoderConfig, parts: Iterable[tuple[Sites, Lora]], head: Params
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return (tensors by peft's names, rank of each site by its name), float32.

    Args:
      config: the base model.
      parts: compact trees on disjoint layers, unscaled.
      head: the trained head, saved whole.
    """
    tensors, ranks = {}, {}
    own = families.of(config).names
    for sites, lora in parts:
        for module, site in sites.items():
            for row, layer in enumerate(site.layers):
                name = own.full[module].format(layer=layer)
                a, b = (np.asarray(lora[module][f][row], np.float32) for f in "ab")
                ranks[name] = r = _used_rank(a, b)
                tensors[f"{ROOT}{name}.lora_A.weight"] = a.T[:r]
                tensors[f"{ROOT}{name}.lora_B.weight"] = b.T[:, :r]
    for part, name in head_names(config).items():
        tensors[f"{ROOT}{name}.weight"] = np.asarray(head[part]["kernel"]).T
        tensors[f"{ROOT}{name}.bias"] = np.asarray(head[part]["bias"])
    cast = {n: np.ascontiguousarray(x, np.float32) for n, x in tensors.items()}
    return dict(sorted(cast.items())), ranks


def write(
    folder: epath.Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write the tensors, then the config, so that a folder with a config is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(dict(tensors), metadata={"format": "pt"})
    files.write_whole(folder / TENSORS, data)
    files.write_json(folder / CONFIG, dict(fields))


def read(folder: epath.Path) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    """Read (config, tensors by plain name) from an adapter's folder.

    Plain names do not include peft's root, its adapter name and its wrappers.

    Raises:
      UserError: a file is missing or damaged, a field has a wrong value, the adapter is
        not plain LoRA, or the weights are a pickle or no finite floats.
    """
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} has no {CONFIG}; expected the folder of a peft adapter, as its "
            "save_pretrained writes it"
        )
    config = peft_config.read(read_fields(folder / CONFIG))
    if not (folder / TENSORS).exists():
        pickled = (folder / "adapter_model.bin").exists()
        got = "only adapter_model.bin, a pickle" if pickled else "no weights"
        raise UserError(
            f"{folder} has {got}; expected {TENSORS}. Load the adapter with peft "
            "where you trust it and call save_pretrained"
        )
    tensors: dict[str, np.ndarray] = {}
    for name, x in read_file(folder / TENSORS).items():
        check_floats(name, x)
        short = plain(name)
        if short in tensors:
            raise UserError(
                f"{folder / TENSORS} has {short} twice; expected one adapter. Export "
                "only one of them"
            )
        if ".original_module." not in short:  # the untrained head of older versions
            tensors[short] = x
    return config, tensors
