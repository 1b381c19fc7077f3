"""Checks of fields: allowed values, types and ranges, each with its own message."""

import functools
import math
import numbers
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from hypelora_jax import files
from hypelora_jax.errors import UserError


def hints(section: type) -> dict[str, Any]:
    """Return the resolved annotations of a section's fields."""
    return _annotations(section, False)


@functools.cache  # they are slow, and a set of tasks has a section for each task
def _annotations(section: type, extras: bool) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=extras)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the values a Literal annotation allows; () for any other annotation."""
    is_literal = typing.get_origin(annotation) is typing.Literal
    return typing.get_args(annotation) if is_literal else ()


def paths(section: type) -> dict[str, str]:
    """Return the fields of a section that are paths, and what each takes."""
    found = _annotations(section, True).items()
    return {n: hint.__metadata__[0] for n, hint in found if _is_annotated(hint)}


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def check(section: str, config: Any) -> None:
    """Check that fields have values of their types, and finite numbers.

    `~` is expanded in fields that are paths; an empty one is not given, if the field is
    empty by default.

    Args:
      section: name of the section in the config; "" for the top level.

    Raises:
      UserError: a value is wrong; the message names the field and what is allowed.
    """
    for name, hint in hints(type(config)).items():
        got, where = getattr(config, name), f"{section}.{name}" if section else name
        allowed = choices(hint)
        if allowed and got not in allowed:
            raise UserError(
                f"config.{where} is {got!r}; expected one of {', '.join(allowed)}"
            )
        options = [one for one in _options(hint) if one in _KINDS]
        if options and not any(_KINDS[one][1](got) for one in options):
            expected = " or ".join(_KINDS[one][0] for one in options)
            raise UserError(f"config.{where} is {got!r}; expected {expected}")
    for name, what in paths(type(config)).items():
        if (got := getattr(config, name)) or getattr(type(config), name):
            found = files.user_path(got, f"config.{section}.{name}", what)
            object.__setattr__(config, name, found)


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or a tuple of the one type."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def finite(x: Any) -> bool:
    """Whether a value is a finite number, which a bool is not."""
    number = isinstance(x, numbers.Real) and not isinstance(x, bool)
    return number and abs(x) <= sys.float_info.max  # NaN is not


def _whole(x: Any) -> bool:
    return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def _tuple_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda got: isinstance(got, tuple | list) and all(map(fits, got))


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


# A type in an annotation -> (its values in words, whether a value is one of them).
# Other types have checks of their own.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda x: isinstance(x, bool)),
    int: ("a whole number", _whole),
    float: ("a finite number", finite),
    str: ("a text", _is_text),
    type(None): ("None", lambda x: x is None),
    tuple[int, ...]: ("whole numbers", _tuple_of(_whole)),
    tuple[float, ...]: ("finite numbers", _tuple_of(finite)),
    tuple[str, ...]: ("names", _tuple_of(_is_text)),
}


def at_least(section: str, config: Any, **minimum: float) -> None:
    """Check that fields are finite and not below their minimum."""
    for name, low in minimum.items():
        got = getattr(config, name)
        if not low <= got < math.inf:  # NaN fails too
            where = f"{section}.{name}" if section else name
            raise UserError(
                f"config.{where} is {got}; expected at least {low}, and finite"
            )


def at_most(section: str, config: Any, **maximum: float) -> None:
    """Check that fields are not above their maximum; NaN is for `at_least` to find."""
    for name, high in maximum.items():
        if (got := getattr(config, name)) > high:
            raise UserError(
                f"config.{section}.{name} is {got}; expected at most {high}"
            )


def number_pairs(where: str, got: Any) -> tuple[tuple[str, float], ...]:
    """Convert a dict from names to numbers, or pairs of them, to a tuple of pairs.

    Raises:
      UserError: it is something else, a number is not finite, or a name comes twice.
    """
    items = got.items() if isinstance(got, Mapping) else got
    try:
        found = tuple((k, x) for k, x in items)
    except (TypeError, ValueError):
        found = ((None, got),)
    if not all(isinstance(k, str) and finite(x) for k, x in found):
        raise UserError(
            f'{where} is {got!r}; expected {{"NAME": NUMBER}}, with names of modules '
            "or regular expressions for them"
        )
    if len(dict(found)) < len(found):
        raise UserError(f"{where} is {got!r}; expected each name once")
    return found


def regex(where: str, text: str, inside: bool = False) -> re.Pattern[str]:
    """Compile a regex of the user; `where` names its field, for the message.

    Raises:
      UserError: it is not a regex, or Python cannot compile it, or warns that a later
        Python reads it otherwise, or with `inside` it cannot be a part of another one,
        because of `(?i)` for example.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # as for [[a]
            if inside:
                re.compile(f"({text})$")
            return re.compile(text)
    except (re.error, OverflowError, RecursionError, FutureWarning) as e:
        raise UserError(f"{where} {text!r} is not a regular expression: {e}") from e


def split_names(got: Any) -> Any:
    """Return the names of a text such as "q,v"; any other value as it is.

    No name has a comma, so as a regular expression such a text would match nothing.
    """
    if isinstance(got, str) and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)+", got):
        return tuple(re.split(r"\s*,\s*", got))
    return got


def optional_rate(section: str, config: Any, name: str) -> None:
    """Check that a rate of dropout is None, or at least 0 and below 1."""
    got = getattr(config, name)
    if not 0 <= (got or 0.0) < 1:
        raise UserError(
            f"config.{section}.{name} is {got}; expected 0 or more, and below 1"
        )


def lora_ranges(config: Any) -> None:
    """Check the numbers and names in the lora section."""
    at_least("lora", config, rank=1, alpha=0, dropout=0)
    for key, rank in config.rank_pattern:
        if type(rank) is not int or rank < 1:
            raise UserError(
                f"config.lora.rank_pattern has rank {rank!r} for {key!r}; expected a "
                "whole number of at least 1"
            )
    if not config.dropout < 1:
        raise UserError(f"config.lora.dropout is {config.dropout}; expected below 1")
    if not config.targets:
        raise UserError(
            f"config.lora.targets is {config.targets!r}; expected names, or one "
            "regular expression"
        )


def _class_weights(got: Any) -> None:
    if got in ("none", "balanced"):
        return
    weights = isinstance(got, tuple) and all(finite(x) and x > 0 for x in got)
    if not weights or not got:
        raise UserError(
            f"config.loss.class_weights is {got!r}; expected none, balanced, or a "
            "number above 0 for each class, such as (1.0, 9.0)"
        )


def loss_ranges(config: Any) -> None:
    """Check the ranges of the numbers in the loss section."""
    _class_weights(config.class_weights)
    t = config.temperature
    number = isinstance(t, int | float) and not isinstance(t, bool)
    if t != "learned" and not (number and 0 < t < math.inf):
        raise UserError(
            f"config.loss.temperature is {t!r}; expected a number above 0, or learned"
        )
    if config.anneal != "none" and not number:
        raise UserError(
            f"config.loss.anneal is {config.anneal!r} and loss.temperature is "
            "learned; expected the number at which annealing starts as "
            "loss.temperature, or loss.anneal=none"
        )
    at_least("loss", config, smoothing=0, gamma=0, penalty_weight=0, margin=0)
    at_least("loss", config, soft_bins=1, anneal_share=0)
    at_least("loss", config, temperature_end=1e-3, kernel_width=1e-6)
    at_least("loss", config, bin_temperature=1e-9)
    at_most("loss", config, anneal_share=1)
    if not config.smoothing < 1:
        raise UserError(
            f"config.loss.smoothing is {config.smoothing}; expected below 1"
        )


def data_ranges(config: Any) -> None:
    """Check the ranges of the data section, and what does not go together."""
    at_least("data", config, max_length=4, num_classes=2, num_examples=32)
    at_least("data", config, max_examples=0)
    if len(set(config.classes)) < len(config.classes) or len(config.classes) == 1:
        raise UserError(
            f"config.data.classes is {config.classes}; expected two or more "
            "different names, or () for the order of the source"
        )
    if config.pad_to_max and config.packing:
        raise UserError(
            "config.data.pad_to_max and config.data.packing are both set; expected "
            "one of them at most, since packed rows have no padding to speak of"
        )
    if not 0 < config.calibration_fraction < 1:
        raise UserError(
            f"config.data.calibration_fraction is {config.calibration_fraction}; "
            "expected above 0 and below 1"
        )


def optim_ranges(config: Any) -> None:
    """Check the ranges of the numbers in the optim section."""
    at_least("optim", config, lr=0, head_lr=0, trunk_lr=0, num_epochs=1)
    at_least("optim", config, batch_size=1, accumulate=1, weight_decay=0, warmup=0)
    at_least("optim", config, clip=0, patience=0, eps=0, b1=0, b2=0, skip_nonfinite=0)
    at_most("optim", config, warmup=1, b1=1, b2=1)
    for name in ("head_lr", "trunk_lr"):
        if (rate := getattr(config, name)) and not config.lr:
            raise UserError(
                f"config.optim.{name} is {rate}, but config.optim.lr is {config.lr}; "
                f"expected lr above 0 as well, or no {name}"
            )
    if config.batch_size % config.accumulate:
        raise UserError(
            f"config.optim.batch_size is {config.batch_size} and accumulate is "
            f"{config.accumulate}; expected a batch size divisible by accumulate"
        )


def no_unknown(where: str, got: dict[str, Any], wanted: Any) -> None:
    """Check that all names are fields of the dataclass `wanted`."""
    names = sorted(f.name for f in fields(wanted))
    if unknown := sorted(set(got) - set(names)):
        raise UserError(
            f"{where} has no field {unknown[0]!r}; expected one of {', '.join(names)}"
        )
