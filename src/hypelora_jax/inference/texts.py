"""Checks of the texts that a user asks about."""

from typing import Any

from hypelora_jax.data.formats.cells import text_fault
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
        if what := text_fault(part):
            raise UserError(f"texts[{number}] is {text!r:.60}; {what}")
    return tuple(parts)
