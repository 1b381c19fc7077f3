"""Rows of JSON lines, CSV and TSV as they come; what is no row is named, not lost.

One bad line costs that line: after a quote that is never closed, reading goes on at the
line after the one it stands in.
"""

import csv
import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hypelora_jax.data.records import listed, shown
from hypelora_jax.data.user_files import COLUMNS
from hypelora_jax.errors import UserError
from hypelora_jax.inference.lines import Line, Lines
from hypelora_jax.inference.predictor import broken, fault

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
DELIMITERS = {"csv": ",", "tsv": "\t"}


class Names(NamedTuple):
    """Where the texts stand: names to look for, in this order, for each text."""

    text: tuple[str, ...]
    text_b: tuple[str, ...] = ()  # () where an example has one text


class Row(NamedTuple):
    """One example: all its cells, and its texts."""

    line: int  # where it begins
    cells: dict[str, Any]
    texts: tuple[str, ...]
    read: int  # bytes of the input up to its end


class Bad(NamedTuple):
    """A line that is no example, and why."""

    line: int
    what: str
    read: int


Rows = Iterator[Row | Bad | None]  # None: the input pauses


def names(pair: bool, text: str, text_b: str, config: tuple[str, str]) -> Names:
    """Columns of the texts: those asked for, else those of training or usual ones.

    Raises:
      UserError: a second text is named and the run reads one.
    """
    if text_b and not pair:
        raise UserError(
            f"--text_b={text_b} names a second text, but this run was trained on one; "
            "leave the flag out"
        )
    chosen = [
        (asked,) if asked else tuple(dict.fromkeys(n for n in (old, *usual) if n))
        for asked, old, usual in zip(
            (text, text_b), config, (COLUMNS["text"], COLUMNS["text_b"]), strict=True
        )
    ]
    return Names(chosen[0], chosen[1] if pair else ())


def read(kind: str, lines: Lines, wanted: Names) -> tuple[list[str] | None, Rows]:
    """(columns, rows) of the input; JSON lines have no columns to tell beforehand.

    Raises:
      UserError: a header that cannot be used.
    """
    if kind == "jsonl":
        return None, _json_rows(lines, wanted)
    records = _records(lines, DELIMITERS[kind])
    first = next((r for r in records if r is not None), None)
    if first is None:
        return None, iter(())  # nothing in, nothing out
    if isinstance(first, Bad):
        raise UserError(f"input line {first.line}: {first.what}; wanted a header line")
    header = [name.strip() for name in first.cells]
    columns = _columns(header, wanted)
    return header, _table_rows(records, header, columns)


def _columns(header: list[str], wanted: Names) -> list[str]:
    twice = sorted({n for n in header if header.count(n) > 1})
    if twice:
        raise UserError(
            f"the header of the input has two columns {twice[0]!r}; wanted one: "
            "rename it"
        )
    out = []
    for flag, asked in zip(("text", "text_b"), wanted, strict=True):
        found = [name for name in asked if name in header]
        if asked and not found:
            raise UserError(
                f"the header of the input has no column {' or '.join(asked)}; it has "
                f"{listed(header)}: name the column with --{flag}=COLUMN"
            )
        out += found[:1]
    return out


def _json_rows(lines: Lines, wanted: Names) -> Rows:
    for line in lines:
        if line is None:
            yield None
        elif line.data.strip():
            cells = _object(line)
            if isinstance(cells, Bad):
                yield cells
                continue
            columns = [
                next((n for n in asked if n in cells), asked[0])
                for asked in wanted
                if asked
            ]
            yield _row(line.number, cells, columns, line.read)


def _object(line: Line) -> dict[str, Any] | Bad:
    try:
        cells = json.loads(line.data.decode())
    except UnicodeDecodeError as e:
        return Bad(line.number, f"not UTF-8 ({e.reason}); save it as UTF-8", line.read)
    except (ValueError, RecursionError) as e:
        return Bad(line.number, f'not JSON ({e}); wanted {{"text": ...}}', line.read)
    if not isinstance(cells, dict):
        what = f"a JSON {type(cells).__name__}; wanted an object"
        return Bad(line.number, f'{what}, {{"text": ...}}', line.read)
    return cells


def _table_rows(records: Iterator, header: list[str], columns: list[str]) -> Rows:
    for record in records:
        if record is None or isinstance(record, Bad):
            yield record
        elif any(map(broken, record.cells)):
            yield Bad(record.line, "not UTF-8; save it as UTF-8", record.read)
        else:
            cells = dict(zip(header, record.cells, strict=True))
            yield _row(record.line, cells, columns, record.read)


def _row(line: int, cells: dict[str, Any], columns: list[str], read: int) -> Row | Bad:
    for name in columns:
        if what := fault(cells.get(name)):
            return Bad(line, f"{name!r} is {shown(cells.get(name))}; {what}", read)
    return Row(line, cells, tuple(cells[name] for name in columns), read)


class _Record(NamedTuple):
    line: int
    cells: list[str]
    read: int


_END = object()
Following = Callable[[], Any]  # the next line, None in a pause, _END


def _records(lines: Lines, delimiter: str) -> Iterator[_Record | Bad | None]:
    """Records of RFC 4180: a quoted field may hold delimiters, quotes and new lines.

    The first one, the header, says how many fields a record has. Of a record that is
    none only the first line is given up.
    """
    again: deque[Line] = deque()  # lines to be read once more
    width = 0

    def following() -> Any:
        return again.popleft() if again else next(lines, _END)

    while (first := following()) is not _END:
        if first is None:
            yield None
            continue
        taken, cells, what = [first], [], ""
        reader = csv.reader(_fed(taken, following), delimiter=delimiter, strict=True)
        try:
            cells = next(reader)
        except csv.Error as e:
            what = f"{e}; wanted RFC 4180 quotes: each quote inside a field doubled"
        width = width or len(cells)
        if cells and len(cells) != width:
            what = f"{len(cells)} fields; wanted {width} as in the header"
        if what:
            again.extendleft(reversed(taken[1:]))
            yield Bad(first.number, what, first.read)
        elif cells:  # not an empty line
            yield _Record(first.number, cells, taken[-1].read)


def _fed(taken: list[Line], following: Following) -> Iterator[str]:
    """Texts of the line taken and of those after it, as far as csv wants to read."""
    yield _decoded(taken[0])
    while (line := following()) is not _END:
        if line is not None:  # a pause inside a record means nothing
            taken.append(line)
            yield _decoded(line)


def _decoded(line: Line) -> str:
    return line.data.decode(errors="surrogateescape")  # `broken` finds what was none
