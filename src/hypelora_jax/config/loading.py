"""Load a config by name or path, with overrides, as a ConfigDict or as settings."""

import difflib
import importlib
import importlib.util
import pkgutil
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from hypelora_jax import files
from hypelora_jax.config.ranges import hints
from hypelora_jax.config.settings import SECTIONS, Settings, from_dict
from hypelora_jax.errors import UserError

CONFIG = "the name of an installed config, or the path of a config file"
_FLAG = re.compile(r"--?config\.([^=]+)=(.*)", re.S)


def load_settings(spec: str, overrides: Sequence[str] = ()) -> Settings:
    """Load the settings of `NAME[:args]` or `PATH.py[:args]`, with overrides.

    Raises:
      UserError: as in `load_config`, or a value is out of range.
    """
    return from_dict(load_config(spec, overrides).to_dict())


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load `NAME[:args]` or `PATH.py[:args]`, with `--config.x.y=value` overrides.

    Raises:
      UserError: a config, argument or field does not exist, or a value has the wrong
        type.
    """
    name, arg = _parts(spec)
    module = _config_module(name)
    try:
        config = module.get_config(arg or None)
    except UserError:
        raise
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"config {name}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config {name}: get_config returned {type(config).__name__}; expected an "
            "ml_collections.ConfigDict"
        )
    _override(config, overrides)
    return config


def _parts(spec: str) -> tuple[str, str]:
    """Return the name or path, and the argument; the path may have colons."""
    if match := re.fullmatch(r"(.*?\.py)(?::(.*))?", spec, re.DOTALL):
        return match[1], match[2] or ""
    name, _, arg = spec.partition(":")
    return (spec, "") if arg.startswith("//") else (name, arg)  # an address


def _config_module(name: str) -> ModuleType:
    if name and "/" not in name and not name.endswith(".py"):
        return _installed(name)
    module = _of_file(files.user_path(name, "--config", CONFIG))
    if not hasattr(module, "get_config"):
        raise UserError(
            f"config {name} does not define get_config; expected a function "
            "get_config(arg)"
        )
    return module


def _installed(name: str) -> ModuleType:
    """Import the module of a config that is installed with the package."""
    installed = importlib.import_module("hypelora_jax.configs")
    known = [m.name for m in pkgutil.iter_modules(installed.__path__) if not m.ispkg]
    if name not in known:
        raise UserError(
            f"there is no config {name!r}; expected one of {', '.join(known)}, or the "
            "path of a config file"
        )
    return importlib.import_module(f"hypelora_jax.configs.{name}")


def _of_file(path: str) -> ModuleType:
    """Import a config file; an error in it is reported as the user's mistake."""
    spec = importlib.util.spec_from_file_location("hypelora_user_config", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(
            f"there is no config file {path!r}; expected the path of a .py file"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"config {path}: {type(error).__name__}: {error}") from error
    return module


def _override(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Apply `--config.x=value` flags in place; values get the types of their fields."""
    config.lock()
    for before, flag in zip(["", *overrides], overrides, strict=False):
        if match := re.match(r"--?(?:no)?config\.([^=]*)", flag):
            _check_field(config, match[1])
        elif not re.fullmatch(r"--?config\.[^=]*", before):
            raise UserError(_stray(flag))
    unset, left = _unset(overrides)
    argv = ["hypelora", *left]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        left = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_type(config, str(error))) from error
    except (flags.Error, ValueError) as error:  # ValueError is about --noconfig.x=true
        raise UserError(_without_value(str(error))) from error
    if left:  # such as the "false" of `--config.lora.rslora false`
        raise UserError(_stray(left[0]))
    for path in unset:
        section, _, field = path.rpartition(".")
        config[section][field] = None


def _stray(word: str) -> str:
    return (
        f"there is {word[:80]!r} among the overrides of the config; expected "
        "--config.SECTION.FIELD=VALUE, with a = for fields that are true or false"
    )


def _unset(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(fields that become None, flags that the parser reads).

    The parser would read "None" as a tuple or a number. The last flag of a field is
    the one that counts.
    """
    last, left = {}, []
    for flag in overrides:
        match = _FLAG.match(flag)
        if match and type(None) in typing.get_args(_hint(match[1])):
            last[match[1]] = match[2] in ("None", "none")
            if last[match[1]]:
                continue
        left.append(flag)
    unset = [path for path, is_none in last.items() if is_none]
    return unset, [f for f in left if not (m := _FLAG.match(f)) or m[1] not in unset]


def _hint(path: str) -> Any:
    """Annotation of a field of a section; None for other paths."""
    section, _, field = path.rpartition(".")
    return hints(SECTIONS[section]).get(field) if section in SECTIONS else None


def _without_value(message: str) -> str:
    """Rewrite absl's message `--noconfig.x=value does not take an argument`."""
    match = re.match(r"--?no(config\.[^=]+)=(.*) does not take an argument", message)
    if match is None:
        return message
    return (
        f"--no{match[1]} is {match[2]!r}; expected no value, because the flag means "
        f"false. Write --{match[1]}=VALUE to set one"
    )


def _wrong_type(config: ConfigDict, message: str) -> str:
    """Rewrite absl's message `flag --config.x=value: reason` in our own form."""
    match = re.match(r"flag --(?:no)?config\.([^=]+)=(.*?): ", message, re.S)
    if match is None:
        return message
    section, _, field = match[1].rpartition(".")
    kind = (config[section] if section else config).get_type(field)
    return f"config.{match[1]} is {match[2]!r}; expected {kind.__name__}"


def _check_field(config: ConfigDict, path: str) -> None:
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, ConfigDict):
            raise UserError(f"config has no field {path!r}; expected SECTION.FIELD")
        if name not in node:
            known = sorted(node)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(
                f"config has no field {path!r}; {hint}expected one of "
                f"{', '.join(known)}"
            )
        node = node[name]
    if isinstance(node, ConfigDict):
        raise UserError(
            f"config.{path} is a section; expected one of its fields, "
            f"--config.{path}.FIELD=VALUE with {', '.join(sorted(node))}"
        )
