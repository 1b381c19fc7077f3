"""Names by which peft finds projections, made from the names of a family."""

import re
from collections.abc import Mapping
from typing import Any

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.families.family import Family

ROOT = "base_model.model."
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def endings(family: Family) -> dict[str, str]:
    """The ending of each module's name by which peft finds it in a list of targets.

    It is the shortest ending that no other module has. If every ending is shared, as
    for BERT's `output.dense`, it is everything after the number of the layer.
    """
    own = {m: n.partition("{layer}.")[2] for m, n in family.names.modules.items()}
    found = {}
    for module, name in own.items():
        parts = name.split(".")
        ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
        found[module] = next((e for e in ends if _ending(own, e) == {module}), name)
    return found


def _ending(names: Mapping[str, str], end: str) -> set[str]:
    """The modules whose names have this ending."""
    return {m for m, name in names.items() if f".{name}".endswith(f".{end}")}


def layers_pattern(family: Family) -> str:
    """The part of a projection's name that precedes the number of the layer."""
    return next(iter(family.names.modules.values())).partition(".{layer}")[0]


def target_regex(sites: Sites, family: Family) -> str:
    """A regex that fully matches the names of these sites and of no others."""
    found = []
    for module, site in sites.items():
        layers = "|".join(str(i) for i in sorted(site.layers))
        name = re.escape(family.names.modules[module])
        found.append(name.replace(re.escape("{layer}"), f"(?:{layers})"))
    return rf"(?:.*\.)?(?:{'|'.join(found)})"


def targets(sites: Sites, family: Family, num_layers: int) -> dict[str, Any]:
    """Peft's `target_modules`, `layers_to_transform` and `layers_pattern`.

    They are plain names, as people write them, if these select exactly the sites. If
    not, `target_modules` is one regex.
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


def plain(name: str) -> str:
    """A tensor's name without peft's root, wrappers and adapter name.

    Wrappers of torch are left out too: those of `torch.compile`, of FSDP and of
    activation checkpoints anywhere in the name, those of data parallelism before and
    after the root. The root may be repeated.
    """
    name = re.sub(rf"(?:^|(?<=\.))(?:{'|'.join(_WRAPPERS)})\.", "", name)
    name = re.sub(rf"^(?:module\.|{re.escape(ROOT)})+", "", name)
    name = re.sub(r"\.modules_to_save\.[^.]+(?=\.)", "", name, count=1)
    return re.sub(r"\.lora_([AB])\.[^.]+\.weight$", r".lora_\1.weight", name)


def site_of(name: str, family: Family) -> tuple[str, int] | None:
    """(module, layer) of a projection's name, with or without the family's prefix."""
    short = name.removeprefix(ROOT).removeprefix(family.names.prefix)
    for module, pattern in family.names.modules.items():
        regex = re.escape(pattern).replace(re.escape("{layer}"), r"(\d+)")
        if match := re.fullmatch(regex, short):
            return module, int(match[1])
    return None
