"""Modules that an adapter's config names, found by peft's rules, and their tensors.

An adapter is used only if its file has what its config names, and nothing else.
"""

import re
from collections.abc import Collection, Iterable
from typing import NoReturn

from hypelora_jax import families
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.peft import CONFIG
from hypelora_jax.interop.peft_config import MERGE, PeftConfig
from hypelora_jax.interop.peft_names import endings
from hypelora_jax.interop.tensor_paths import names

ALL_LINEAR = "all-linear"
_DEFAULTS = ("q", "v")  # targets that peft takes if the config has none


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
        re.match(rf"(^|.*\.){module}($|\..*)", name) for module in config.saved
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


def is_saved(config: PeftConfig, name: str) -> bool:
    """Whether peft saves the module of this name, or one that contains it, whole."""
    parts = name.split(".")
    around = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(one.endswith(end) for one in around for end in config.saved)


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
    _check_saved(config, fields, others)
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


def _check_saved(
    config: EncoderConfig, fields: PeftConfig, others: Collection[str]
) -> None:
    """Check that the file has every module that the config says is saved whole."""
    prefix = families.of(config).names.prefix
    for tensor in names(config):
        present = tensor in others or tensor.removeprefix(prefix) in others
        if not present and is_saved(fields, tensor.rpartition(".")[0]):
            _refuse_missing(tensor, "modules_to_save")


def _refuse_missing(tensor: str, field: str) -> NoReturn:
    raise UserError(
        f"the adapter has no {tensor}, but {CONFIG} names that module ({field}); "
        "expected every module that it names. Save the adapter again with peft's "
        "save_pretrained"
    )
