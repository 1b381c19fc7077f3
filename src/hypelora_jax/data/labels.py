"""Labels of classes: which spellings are one class, and what means no label."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from hypelora_jax.data.formats.cells import broken, shown

Label = str | int | float | None  # as it is in a file; None if it is missing
NO_LABEL = "-1"  # in GLUE's test sets, which keep their labels secret
_NUMBER = re.compile(  # not 01, because codes are written so
    r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"
)
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")


def fault(value: Any) -> str:
    """Return the reason why a cell is not a label, or "" if it is one."""
    if isinstance(value, list | dict | bytes):
        return f"the label is {shown(value)}; expected a string or a number"
    if isinstance(value, str) and broken(value):
        return f"the label is {shown(value)}; expected whole characters"
    return ""


def scalar(value: Any) -> Label:
    """Return a cell as a label: a stripped string, a number, or None if it is empty."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) or value is None:
        return value
    return str(value).strip() or None


def number(label: Label) -> float | None:
    """Return the number that a label is or spells, or None."""
    try:
        return None if label is None else float(label)
    except (ValueError, OverflowError):
        return None


def has_decimal_comma(label: Label) -> bool:
    """Whether the label is a number such as 0,5."""
    return isinstance(label, str) and _DECIMAL_COMMA.fullmatch(label) is not None


def is_missing(label: Label) -> bool:
    """Whether there is no label: an empty cell, null, or a number that is NaN."""
    return label is None or isinstance(label, float) and not math.isfinite(label)


def spelled(label: str | int | float) -> str:
    """Return the label as text, a whole number without a decimal point."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def key(label: str | int | float) -> str:
    """Return what all spellings of a class share: 1 for 1.0, true for True."""
    text = spelled(label)
    if text in ("True", "TRUE", "False", "FALSE"):
        return text.lower()
    if not _NUMBER.fullmatch(text):
        return text
    plain = format(Decimal(text), "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain == "-0" else plain


def classes(labels: Iterable[Label]) -> dict[str, list[str]]:
    """Map the names of the classes to their spellings, sorted.

    A class that is spelled in one way has that name, and otherwise its `key`.
    """
    found: dict[str, set[str]] = {}
    given = (x for x in labels if x is not None and not is_missing(x))
    for text in dict.fromkeys(map(spelled, given)):
        found.setdefault(key(text), set()).add(text)
    return {
        next(iter(texts)) if len(texts) == 1 else name: sorted(texts)
        for name, texts in found.items()
    }


def reader(names: Sequence[str]) -> Callable[[Label], int | None]:
    """Return a function from a label to the number of its class, or None.

    A label that is spelled as a name is that class; otherwise the keys are compared.
    """
    exact = {name: i for i, name in enumerate(names)}
    keys: dict[str, int] = {}
    for i, name in enumerate(names):
        keys.setdefault(key(name), i)

    def number_of(label: Label) -> int | None:
        if is_missing(label) or label is None:
            return None
        text = spelled(label)
        return exact[text] if text in exact else keys.get(key(text))

    return number_of


def means_none(label: Label, names: Sequence[str]) -> bool:
    """Whether an example has no label: it is missing, or it is -1 and not a class."""
    if is_missing(label) or label is None:
        return True
    return key(label) == NO_LABEL and NO_LABEL not in map(key, names)
