"""Checks of fields: allowed values, types and ranges, each with its own message."""

import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hypelora_jax.errors import UserError


def hints(section: type) -> dict[str, Any]:
    """Return the resolved annotations of a section's fields."""
    return typing.get_type_hints(section)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the values a Literal annotation allows; () for any other annotation."""
    is_literal = typing.get_origin(annotation) is typing.Literal
    return typing.get_args(annotation) if is_literal else ()


def check(section: str, config: Any) -> None:
    """Check that Literal fields have allowed values, and tuples of int only integers.

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
        of_ints = isinstance(got, tuple) and tuple[int, ...] in _options(hint)
        if of_ints and not all(type(x) is int for x in got):
            raise UserError(f"config.{where} is {got}; expected whole numbers")


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or a tuple of the one type."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def at_least(section: str, config: Any, **minimum: float) -> None:
    """Check that fields are finite and not below their minimum."""
    for name, low in minimum.items():
        got = getattr(config, name)
        if not low <= got < math.inf:  # NaN fails too
            where = f"{section}.{name}" if section else name
            raise UserError(
                f"config.{where} is {got}; expected at least {low}, and finite"
            )


def _finite(got: Any) -> bool:
    return type(got) in (int, float) and math.isfinite(got)


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
    if not all(isinstance(k, str) and _finite(x) for k, x in found):
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
      UserError: it is not a regex, or Python cannot compile it, or with `inside` it
        cannot be a part of another one, because of `(?i)` for example.
    """
    try:
        if inside:
            re.compile(f"({text})$")
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as e:
        raise UserError(f"{where} {text!r} is not a regular expression: {e}") from e


def lora_ranges(config: Any) -> None:
    """Check the numbers and names in the lora section."""
    for key, rank in config.rank_pattern:
        if type(rank) is not int or rank < 1:
            raise UserError(
                f"config.lora.rank_pattern has rank {rank!r} for {key!r}; expected a "
                "whole number of at least 1"
            )
    if not config.dropout < 1:
        raise UserError(f"config.lora.dropout is {config.dropout}; expected below 1")
    for field in ("targets", "exclude"):
        got = getattr(config, field)
        names = (got,) if isinstance(got, str) else got
        wrong = not all(isinstance(name, str) for name in names)
        if wrong or (not got and field == "targets"):
            raise UserError(
                f"config.lora.{field} is {got!r}; expected names, or one "
                "regular expression"
            )


def _class_weights(got: Any) -> None:
    if got in ("none", "balanced"):
        return
    numbers = isinstance(got, tuple) and all(_finite(x) and x > 0 for x in got)
    if not numbers or not got:
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
    if not config.smoothing < 1 or config.anneal_share > 1:
        raise UserError(
            f"config.loss.smoothing is {config.smoothing} and loss.anneal_share is "
            f"{config.anneal_share}; expected smoothing below 1, and anneal_share of "
            "at most 1"
        )


def optim_ranges(config: Any) -> None:
    """Check the ranges of the numbers in the optim section."""
    at_least("optim", config, lr=0, head_lr=0, trunk_lr=0, num_epochs=1)
    at_least("optim", config, batch_size=1, accumulate=1, weight_decay=0, warmup=0)
    at_least("optim", config, clip=0, patience=0, eps=0, b1=0, b2=0, skip_nonfinite=0)
    own_rate = config.head_lr or config.trunk_lr
    if max(config.warmup, config.b1, config.b2) > 1 or (own_rate and not config.lr):
        raise UserError(
            f"config.optim has warmup {config.warmup}, b1 {config.b1}, b2 {config.b2} "
            f"and lr {config.lr}; expected warmup, b1 and b2 of at most 1, and lr "
            "above 0 if head_lr or trunk_lr is"
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
