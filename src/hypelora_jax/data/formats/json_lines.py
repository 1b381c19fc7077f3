"""JSON lines: one object on each line."""

import json
from collections.abc import Sequence
from typing import Any

from hypelora_jax.data.formats.lines import Line, Lines
from hypelora_jax.data.formats.sheet import Bad, Items, Row, Sheet

_WANTED = "expected one object per line"


class _Repeated(Exception):
    """An object has a key twice, so one of the two values would be lost."""


def read(lines: Lines, name: str) -> Sheet:
    """Return the sheet of JSON lines; blank lines are left out."""

    def rows(columns: Sequence[str], others: bool) -> Items:
        del columns, others  # a line is read as a whole
        for line in lines:
            if line is None:
                yield None
            elif line.data.strip():
                yield _row(line)

    return Sheet(name, None, rows)


def _row(line: Line) -> Row | Bad:
    try:
        text = line.data.decode()
        cells = json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError as e:
        what = f"byte 0x{e.object[e.start]:02x} is not UTF-8; expected UTF-8 text"
    except _Repeated as e:
        what = f"the key {e.args[0]!r:.60} occurs twice; expected each key once"
    except (ValueError, RecursionError) as e:
        what = f"the line is not JSON ({e}); {_WANTED}"
    else:
        if isinstance(cells, dict):
            return Row(line.number, cells, line.read)
        what = f"the line is a JSON {type(cells).__name__}; {_WANTED}"
    return Bad(line.number, what, line.read)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(next(n for n in names if names.count(n) > 1))
    return out
