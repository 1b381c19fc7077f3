"""Checks of the texts that a user asks about."""

from typing import Any

from hypelora_jax.errors import UserError

Text = str | tuple[str, str]


def as_fields(text: Any, number: int, pair: bool) -> tuple[str, ...]:
    """Return the texts of one example: ("...",), or ("...", "...") if `pair`.

    Raises:
      UserError: `text` is something else; the message names it by `number`.
    """
    parts = (text,) if isinstance(text, str) else text
    wanted = "a pair of texts" if pair else "a text"
    if not isinstance(parts, tuple | list) or len(parts) != 1 + pair:
        raise UserError(f"texts[{number}] is {text!r:.60}; expected {wanted}")
    for part in parts:
        if what := fault(part):
            raise UserError(f"texts[{number}] is {text!r:.60}; {what}")
    return tuple(parts)


def fault(text: Any) -> str:
    """Return the reason why this is not a usable text, or "" if it is one."""
    if not isinstance(text, str) or not text.strip():
        return "expected a text that is not empty"
    return "it is not Unicode; expected whole characters" if broken(text) else ""


def broken(text: str) -> bool:
    """Whether the text contains half of a surrogate pair.

    JSON can spell one, but neither UTF-8 nor the tokenizer can represent it.
    """
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
