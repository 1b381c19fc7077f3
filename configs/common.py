"""Code that all configs share: the defaults, and the arguments after the colon.

The defaults come from the dataclasses in `hypelora_jax.config`. This file gives them
the form that `--config.SECTION.FIELD=VALUE` can override.
"""

import dataclasses
import types
import typing
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict, FieldReference

from hypelora_jax.config.settings import SECTIONS, Settings
from hypelora_jax.errors import UserError
from hypelora_jax.model import METHODS

# The learning rate of the head with an adapter. At the adapter's rates BERT's pooler
# saturates within a few steps and the run stays at the majority class: on CoLA at lr
# 3e-3, seed 2, LoRA has an MCC of 0 with head_lr = lr and 0.17 with this rate.
HEAD_RATE = 5e-4
# The learning rate of the hyper-network's trunk. A step of Adam moves a unit of a layer
# by up to the rate times the layer's width: at 2e-3 and 256 inputs by 0.7 of its size,
# at this rate by 0.04. All sites read the trunk, so one such step moves every factor
# at once, and on movie_reviews the loss jumped to 1.37, twice its start, after warm-up.
TRUNK_RATE = 1e-4


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the defaults of all fields: MiniLM and movie_reviews, both embedded."""
    parse_arg(arg)
    return _config(Settings())


def with_method(arg: SimpleNamespace) -> ConfigDict:
    """Return the defaults for a method, with its A mode and learning rates."""
    config = get_config()
    config.method = arg.method
    config.hyper.a = arg.a
    method = METHODS.get(arg.method)
    if method is None:  # the command refuses it and lists the methods
        return config
    config.optim.lr = method.lr
    if method.adapts:
        config.optim.head_lr = HEAD_RATE
    if method.network:
        config.optim.trunk_lr = TRUNK_RATE
    return config


def parse_arg(arg: str | None, **defaults: Any) -> SimpleNamespace:
    """Parse `name=value,name=value`; each value gets the type of its default.

    Raises:
      UserError: a name is not in `defaults`, or a value has the wrong type.
    """
    out = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, value = item.partition("=")
        if name not in defaults or not equals:
            known = ", ".join(f"{k}={v}" for k, v in defaults.items()) or "none"
            raise UserError(
                f"config argument {item!r} is unknown; the known arguments and their "
                f"defaults are {known}"
            )
        out[name] = _typed(name, value, type(defaults[name]))
    return SimpleNamespace(**out)


def _typed(name: str, value: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return kind(value)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"config argument {name}={value}; expected {kind.__name__}"
        ) from error


def _config(section: Any) -> ConfigDict:
    """Convert a dataclass to a ConfigDict with nested sections."""
    hints = typing.get_type_hints(type(section))
    config = ConfigDict()
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        is_section = f.name in SECTIONS and isinstance(value, SECTIONS[f.name])
        config[f.name] = _config(value) if is_section else _field(value, hints[f.name])
    return config


def _field(value: Any, hint: Any) -> Any:
    """Make a field that accepts an override of every type in its annotation."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [_plain(k) for k in kinds if k is not type(None)]
    return FieldReference(value, field_type=kinds[0] if len(kinds) == 1 else object)


def _plain(hint: Any) -> type:
    """Return the type of the values of an annotation; it is str for a Literal."""
    origin = typing.get_origin(hint)
    return str if origin is typing.Literal else origin or hint
