"""Cells of tables: how they are shown and written, and which ones are usable texts."""

import math
import reprlib
from collections.abc import Iterable
from typing import Any

from hypelora_jax import files


def listed(names: Iterable[str]) -> str:
    """Return the first 12 names in one line, for error messages."""
    names = [" ".join(name.split()) or "(empty)" for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def shown(value: Any) -> str:
    """Return a value for error messages: quoted, cut short, in one line."""
    return " ".join(reprlib.repr(value).split())


def text_fault(text: Any) -> str:
    """Return the reason why this is not a usable text, or "" if it is one."""
    if not isinstance(text, str) or not text.strip():
        return "expected a text that is not empty"
    return "it is not Unicode; expected whole characters" if broken(text) else ""


def broken(text: str) -> bool:
    """Whether the text contains half of a surrogate pair.

    JSON can spell one, but neither UTF-8 nor the tokenizer can represent it.
    """
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def as_json(value: Any) -> str:
    """Return a value as JSON in one line; numbers that are not finite become null."""
    value = _finite(value)
    text = files.to_json(value, ensure_ascii=False, default=str)
    return files.to_json(value, default=str) if broken(text) else text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(value: Any) -> Any:
    """Return a value as a cell of CSV: lists, objects and booleans become JSON."""
    if isinstance(value, bool | list | dict):
        return as_json(value)
    return "" if value is None else value
