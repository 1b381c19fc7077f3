"""Adapters of Hugging Face's peft: their two files as factors and head, both ways.

`adapter_config.json` says rank, scale and places; `adapter_model.safetensors` holds
lora_A (r, I) and lora_B (O, r) of each site and the modules that were saved whole, the
head here. Our factors are (I, R) and (R, O), unscaled in both.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from hypelora_jax import families, files
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.tensor_paths import head_names
from hypelora_jax.interop.tensors import read_file, read_json
from hypelora_jax.types import Lora, Params

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_ROOT = "base_model.model."


def endings(family: Family) -> dict[str, str]:
    """The end of each module's name by which peft finds it in a list of targets.

    It is the shortest one that no other module has; where there is none, as for BERT's
    `output.dense`, all that follows the number of the layer.
    """
    own = {m: n.partition("{layer}.")[2] for m, n in family.names.modules.items()}
    found = {}
    for module, name in own.items():
        parts = name.split(".")
        ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
        found[module] = next((e for e in ends if _ending(own, e) == {module}), name)
    return found


def _ending(names: Mapping[str, str], end: str) -> set[str]:
    """The modules whose names end so."""
    return {m for m, name in names.items() if f".{name}".endswith(f".{end}")}


def layers_pattern(family: Family) -> str:
    """What precedes the number of a layer in the names of projections."""
    return next(iter(family.names.modules.values())).partition(".{layer}")[0]


def target_regex(sites: Sites, family: Family) -> str:
    """A regex that the names of these sites match whole, and no others of a model."""
    found = []
    for module, site in sites.items():
        layers = "|".join(str(i) for i in sorted(site.layers))
        name = re.escape(family.names.modules[module])
        found.append(name.replace(re.escape("{layer}"), f"(?:{layers})"))
    return rf"(?:.*\.)?(?:{'|'.join(found)})"


def targets(sites: Sites, family: Family, num_layers: int) -> dict[str, Any]:
    """Peft's `target_modules`, `layers_to_transform` and `layers_pattern`.

    Names where modules share their layers, as people write them; else one regex.
    """
    layers = {tuple(sorted(site.layers)) for site in sites.values()}
    ends, named = endings(family), family.names.modules
    if len(layers) > 1 or any(_ending(named, ends[m]) - sites.keys() for m in sites):
        return {"target_modules": target_regex(sites, family)}
    own = list(layers.pop())
    where = {"layers_to_transform": own, "layers_pattern": layers_pattern(family)}
    return {
        "target_modules": [ends[m] for m in sites],
        **({} if own == list(range(num_layers)) else where),
    }


def whole_modules(config: EncoderConfig) -> list[str]:
    """What peft keeps whole: its two names of a classifier, and the head's others."""
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
      lora: rank, alpha, rsLoRA and dropout.
      sites: all adapted sites.
      ranks: rank in the file of each site, by its name with the family's prefix.
      config: the base model.
      base: `base_model_name_or_path`.
      revision: commit of a hub model; "" where there is none.
    """
    odd = {name: r for name, r in ranks.items() if r != lora.rank}
    whole = float(lora.alpha).is_integer()
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "revision": revision or None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if whole else lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": lora.dropout,
        **targets(sites, families.of(config), config.layers),
        "modules_to_save": whole_modules(config),
        "rank_pattern": odd,
        "alpha_pattern": {n: _alpha_for(lora, r) for n, r in odd.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _alpha_for(lora: LoraConfig, rank: int) -> float:
    """Alpha that gives a site of another rank the scale of all."""
    share = rank / lora.rank
    return lora.alpha * (math.sqrt(share) if lora.rslora else share)


def _used_rank(a_IR: np.ndarray, b_RO: np.ndarray) -> int:
    """Components up to the last that is not zero in both factors, one at least."""
    used = np.any(a_IR != 0, axis=0) | np.any(b_RO != 0, axis=1)
    return max(1, int(np.max(np.flatnonzero(used), initial=0)) + 1)


def to_peft(
    config: EncoderConfig, parts: Iterable[tuple[Sites, Lora]], head: Params
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(tensors by peft's names, rank of each site by its name), float32.

    Args:
      config: the base model.
      parts: compact trees on disjoint layers, unscaled.
      head: the trained head, saved whole.
    """
    tensors, ranks = {}, {}
    own = families.of(config).names
    prefix, patterns = own.prefix, own.modules
    for sites, lora in parts:
        for module, site in sites.items():
            for row, layer in enumerate(site.layers):
                name = prefix + patterns[module].format(layer=layer)
                a, b = (np.asarray(lora[module][f][row], np.float32) for f in "ab")
                ranks[name] = r = _used_rank(a, b)
                tensors[f"{_ROOT}{name}.lora_A.weight"] = a.T[:r]
                tensors[f"{_ROOT}{name}.lora_B.weight"] = b.T[:, :r]
    for part, name in head_names(config).items():
        tensors[f"{_ROOT}{name}.weight"] = np.asarray(head[part]["kernel"]).T
        tensors[f"{_ROOT}{name}.bias"] = np.asarray(head[part]["bias"])
    cast = {n: np.ascontiguousarray(x, np.float32) for n, x in tensors.items()}
    return dict(sorted(cast.items())), ranks


def write(
    folder: epath.Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """The two files of an adapter, the config last: what has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(dict(tensors), metadata={"format": "pt"})
    files.write_whole(folder / TENSORS, data)
    files.write_json(folder / CONFIG, dict(fields))


def read(folder: epath.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, tensors by plain name) of an adapter's folder.

    Plain names lack peft's root, its adapter name and its wrappers.

    Raises:
      UserError: a file is missing or damaged, or the weights are a pickle.
    """
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} has no {CONFIG}; wanted the folder of a peft adapter, "
            "as its save_pretrained writes it"
        )
    fields = read_json(folder / CONFIG)
    if not (folder / TENSORS).exists():
        pickled = (folder / "adapter_model.bin").exists()
        got = "only adapter_model.bin, a pickle" if pickled else "no weights"
        raise UserError(
            f"{folder} has {got}; wanted {TENSORS}: load the adapter with peft where "
            "you trust it and call save_pretrained"
        )
    tensors: dict[str, np.ndarray] = {}
    for name, x in read_file(folder / TENSORS).items():
        short = plain(name)
        if short in tensors:
            raise UserError(
                f"{folder / TENSORS} holds {short} twice; wanted one adapter: export "
                "one of them"
            )
        if ".original_module." not in short:  # older versions kept the untrained head
            tensors[short] = x
    return fields, tensors


def plain(name: str) -> str:
    """A tensor's name without peft's root, wrappers and adapter name."""
    name = name.removeprefix(_ROOT)
    name = re.sub(r"\.modules_to_save\.\w+(?=\.)", "", name, count=1)
    return re.sub(r"\.lora_([AB])\.\w+\.weight$", r".lora_\1.weight", name)


def site_of(name: str, family: Family) -> tuple[str, int] | None:
    """(module, layer) of a projection's name, with or without the family's prefix."""
    short = name.removeprefix(_ROOT).removeprefix(family.names.prefix)
    for module, pattern in family.names.modules.items():
        regex = re.escape(pattern).replace(re.escape("{layer}"), r"(\d+)")
        if match := re.fullmatch(regex, short):
            return module, int(match[1])
    return None
