"""Rows of JSON lines, CSV and TSV, one at a time; bad lines are reported, not lost."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.sources.readers import listed, shown
from hypelora_jax.data.sources.user_files import COLUMNS
from hypelora_jax.errors import UserError
from hypelora_jax.inference.csv_records import Record, records
from hypelora_jax.inference.lines import Bad, Line, Lines
from hypelora_jax.inference.texts import broken, fault


class Format(NamedTuple):
    """A format of rows; without a delimiter it is one JSON object per line."""

    suffixes: tuple[str, ...]
    delimiter: str = ""

    @property
    def is_table(self) -> bool:
        """Whether there is a header line, and cells are texts."""
        return bool(self.delimiter)


FORMATS = {
    "jsonl": Format((".jsonl", ".ndjson")),
    "csv": Format((".csv",), ","),
    "tsv": Format((".tsv",), "\t"),
}


class Names(NamedTuple):
    """Names of the columns of the texts: for each text, the first one found counts.

    `condition` names the column of the conditions, which `vectors` reads; they are ""
    and None for a run without conditions.
    """

    text: tuple[str, ...]
    text_b: tuple[str, ...] = ()  # () if an example has one text
    condition: str = ""
    vectors: Vectors | None = None


class Row(NamedTuple):
    """One example: all its cells, its texts, and its condition, if any."""

    line: int  # where it begins
    cells: dict[str, Any]
    texts: tuple[str, ...]
    read: int  # bytes of the input up to its end
    condition: np.ndarray | None = None


Rows = Iterator[Row | Bad | None]  # None means that the input pauses


def format_of(path: str) -> Format | None:
    """Return the format that the suffix of a path names, or None if it names none."""
    path = path.lower()
    return next((f for f in FORMATS.values() if path.endswith(f.suffixes)), None)


def names(pair: bool, text: str, text_b: str, config: tuple[str, str]) -> Names:
    """Return the column names that may contain the texts.

    A name that the user gives is the only candidate. Otherwise the column of training
    comes first, and the usual names follow.

    Raises:
      UserError: a second text is named, but the run reads only one.
    """
    if text_b and not pair:
        raise UserError(
            f"--text_b={text_b} names a second text, but this run was trained on one; "
            "leave the flag out"
        )
    first = _candidates(text, config[0], COLUMNS["text"])
    if not pair:
        return Names(first)
    return Names(first, _candidates(text_b, config[1], COLUMNS["text_b"]))


def _candidates(asked: str, trained: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    if asked:
        return (asked,)
    return tuple(dict.fromkeys(name for name in (trained, *usual) if name))


def read(how: Format, lines: Lines, wanted: Names) -> tuple[list[str] | None, Rows]:
    """Read (columns, rows) of the input; columns are None for JSON lines.

    Raises:
      UserError: the header cannot be used.
    """
    if not how.is_table:
        return None, _json_rows(lines, wanted)
    found = records(lines, how.delimiter)
    first = next((record for record in found if record is not None), None)
    if first is None:  # an empty input
        return None, iter(())
    if isinstance(first, Bad):
        raise UserError(
            f"input line {first.line}: {first.what}; expected a header line"
        )
    header = [name.strip() for name in first.cells]
    columns = _columns(header, wanted)
    if wanted.condition and wanted.condition not in header:
        raise UserError(
            f"the header of the input has no column {wanted.condition}, the condition "
            f"of each text; it has {listed(header)}. Add it"
        )
    return header, _table_rows(found, header, columns, wanted)


def _columns(header: list[str], wanted: Names) -> list[str]:
    twice = sorted({n for n in header if header.count(n) > 1})
    if twice:
        raise UserError(
            f"the header of the input has two columns {twice[0]!r}; expected one. "
            "Rename the other"
        )
    out = []
    for flag, asked in zip(("text", "text_b"), wanted[:2], strict=True):
        found = [name for name in asked if name in header]
        if asked and not found:
            raise UserError(
                f"the header of the input has no column {' or '.join(asked)}; it has "
                f"{listed(header)}. Name the column with --{flag}=COLUMN"
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
                for asked in wanted[:2]
                if asked
            ]
            yield _row(line.number, cells, columns, line.read, wanted)


def _object(line: Line) -> dict[str, Any] | Bad:
    try:
        cells = json.loads(line.data.decode())
    except UnicodeDecodeError as e:
        return Bad(
            line.number,
            f"it is not UTF-8 ({e.reason}); save it as UTF-8",
            line.read,
        )
    except (ValueError, RecursionError) as e:
        return Bad(
            line.number,
            f'it is not JSON ({e}); expected {{"text": ...}}',
            line.read,
        )
    if not isinstance(cells, dict):
        what = f"it is a JSON {type(cells).__name__}; expected an object"
        return Bad(line.number, f'{what}, {{"text": ...}}', line.read)
    return cells


def _table_rows(
    found: Iterator[Record | Bad | None],
    header: list[str],
    columns: list[str],
    wanted: Names,
) -> Rows:
    for record in found:
        if record is None or isinstance(record, Bad):
            yield record
        elif any(map(broken, record.cells)):
            yield Bad(record.line, "it is not UTF-8; save it as UTF-8", record.read)
        else:
            cells = dict(zip(header, record.cells, strict=True))
            yield _row(record.line, cells, columns, record.read, wanted)


def _row(
    line: int, cells: dict[str, Any], columns: list[str], read: int, wanted: Names
) -> Row | Bad:
    for name in columns:
        if what := fault(cells.get(name)):
            return Bad(line, f"{name!r} is {shown(cells.get(name))}; {what}", read)
    texts = tuple(cells[name] for name in columns)
    if wanted.vectors is None:
        return Row(line, cells, texts, read)
    cell = cells.get(wanted.condition)
    if what := wanted.vectors.fault(cell):
        return Bad(line, f"{what} (column {wanted.condition!r})", read)
    return Row(line, cells, texts, read, wanted.vectors.vector(cell))
