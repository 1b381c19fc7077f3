"""Names by which peft finds modules, and the modules that an adapter's config names.

An adapter is used only if its file has what its config names, and nothing else.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from hypelora_jax import families
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.peft_config import CONFIG, MERGE, PeftConfig
from hypelora_jax.interop.tensor_paths import names

ROOT = "base_model.model."
ALL_LINEAR = "all-linear"
_DEFAULTS = ("q", "v")  # targets that peft takes if the config has none
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


def is_target(
    config: PeftConfig, name: str, defaults: Iterable[str], linear: bool
) -> bool:
    """Whether peft adapts a module.

    Args:
      config: the adapter's config.
      name: the module, by its name in torch.
      defaults: targets that peft takes if the config has none.
      linear: whether it is a linear layer, or else a table of embeddings.
    """
    if _matches(config.exclude, name) or any(
        re.match(rf"(^|.*\.){module}($|\..*)", name) for module in config.whole
    ):
        return False
    targets = tuple(defaults) if config.targets is None else config.targets
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return linear
    listed = not isinstance(targets, str) and name not in targets
    if listed and config.layers and _layer(config, name) not in config.layers:
        return False
    return _matches(targets, name)


def _matches(chosen: tuple[str, ...] | str, name: str) -> bool:
    """Whether a regex matches the whole name, or a list has an ending of it."""
    if isinstance(chosen, str):
        return bool(chosen) and re.fullmatch(chosen, name) is not None
    return any(f".{name}".endswith(f".{end}") for end in chosen)


def _layer(config: PeftConfig, name: str) -> int:
    """Number of the layer in a name; -1 if there is none."""
    before = [rf"(?:^|.*?\.){pattern}" for pattern in config.layers_pattern]
    for start in before or [r".*?\.[^.]*"]:
        if match := re.match(rf"{start}\.(?P<its_layer>\d+)\.", name):
            return int(match["its_layer"])
    return -1


def is_whole(config: PeftConfig, name: str) -> bool:
    """Whether peft saves the module of this name, or one that contains it, whole."""
    parts = name.split(".")
    around = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(one.endswith(end) for one in around for end in config.whole)


def check_complete(
    config: EncoderConfig,
    fields: PeftConfig,
    adapted: Collection[str],
    others: Collection[str],
) -> None:
    """Check that the file adapts and saves the modules that its config names.

    Args:
      config: the base model.
      fields: the adapter's config.
      adapted: modules with factors, by their names in the file.
      others: names of the tensors that are no factors.

    Raises:
      UserError: a tensor is missing, or a module has factors and is not named.
    """
    _check_whole(config, fields, others)
    found = _modules(config, adapted)
    ends = endings(families.of(config))
    defaults = [ends[module] for module in _DEFAULTS if module in ends]
    for module, linear in found.items():
        named = is_target(fields, module, defaults, linear)
        if named and not linear:
            raise UserError(
                f"{CONFIG} names {module} (target_modules); expected projections. "
                f"{MERGE}"
            )
        if named and module not in adapted:
            _refuse_missing(f"{module}.lora_A.weight", "target_modules")
        if module in adapted and not named:
            raise UserError(
                f"the adapter has factors of {module}, which {CONFIG} does not name "
                "(target_modules); expected the config that was saved with them"
            )


def _modules(config: EncoderConfig, adapted: Iterable[str]) -> dict[str, bool]:
    """Linear layers (True) and tables (False) of the model, by their names in torch.

    A model without a head has no prefix in its names, and only the encoder's modules.
    """
    prefix = families.of(config).names.prefix
    bare = not any(name.startswith(prefix) for name in adapted)
    found = {}
    for tensor, entry in names(config).items():
        module, _, leaf = tensor.rpartition(".")
        inside = module.startswith(prefix)
        is_table = entry.path.endswith("/embedding")
        if leaf == "weight" and (entry.turned or is_table) and (inside or not bare):
            found[module.removeprefix(prefix) if bare else module] = not is_table
    return found


def _check_whole(
    config: EncoderConfig, fields: PeftConfig, others: Collection[str]
) -> None:
    """Check that the file has every module that the config says is saved whole."""
    prefix = families.of(config).names.prefix
    for tensor in names(config):
        present = tensor in others or tensor.removeprefix(prefix) in others
        if not present and is_whole(fields, tensor.rpartition(".")[0]):
            _refuse_missing(tensor, "modules_to_save")


def _refuse_missing(tensor: str, field: str) -> NoReturn:
    raise UserError(
        f"the adapter has no {tensor}, but {CONFIG} names that module ({field}); "
        "expected every module that it names. Save the adapter again with peft's "
        "save_pretrained"
    )
