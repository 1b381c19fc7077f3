"""Rows of CSV and TSV; after a bad line, reading goes on at the next one.

The rules of a record:

- Lines may end in a line feed, a carriage return, or both, and blank ones are left out.
- In CSV a field may be quoted as in RFC 4180 and then contain delimiters, quotes and
  line ends. A quote inside a field that does not begin with one is a letter. Spaces
  around a field that is quoted whole do not belong to it.
- In TSV a record is one line and a quote is a letter, unless a field is quoted whole.
- The header says how many fields a record has.

The reader of the standard library, `csv.reader`, is not used: its limit on the length
of a field is one for the whole process, it takes a quote after a space for a letter,
and a quote at the start of a TSV field takes in the lines after it. `csv.writer` writes
what is read here.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from absl import logging

from hypelora_jax.data.formats.cells import as_text, broken
from hypelora_jax.data.formats.lines import Line, Lines
from hypelora_jax.data.formats.sheet import Bad, Items, Row, Sheet, columns_of
from hypelora_jax.errors import UserError

# Characters after which a quote that is still open is taken for a mistake, so that it
# does not take in all the rest of an endless input.
MAX_QUOTED = 1 << 24
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_HINT = re.compile(r'"?sep=(.)"?')  # a first line by which Excel names the delimiter


class _End:
    """Marks the end of the input, because None already means a pause."""


class Source(NamedTuple):
    """Lines of the input, of which some may be read again."""

    lines: Lines
    again: deque[Line]

    def following(self) -> Line | None | type[_End]:
        """Return the next line, None at a pause, or _End."""
        return self.again.popleft() if self.again else next(self.lines, _End)


class Dialect(NamedTuple):
    """How fields are told apart."""

    delimiter: str
    is_tsv: bool  # a record is one line


def read(lines: Lines, name: str, delimiter: str) -> Sheet:
    """Return the sheet of a CSV or TSV file; the delimiter of TSV is a tab.

    A CSV file whose header has semicolons, tabs or bars and no comma is split there,
    and a log line says so.

    Raises:
      UserError: the header cannot be read.
    """
    source = Source(lines, deque())
    dialect, cells = _header(source, name, Dialect(delimiter, delimiter == "\t"))
    columns, repeated = columns_of(name, cells)

    def rows(wanted: Sequence[str], others: bool) -> Items:
        del wanted, others  # a line is read as a whole
        return _rows(source, dialect, columns, name)

    return Sheet(name, columns, rows, repeated)


def _header(source: Source, name: str, dialect: Dialect) -> tuple[Dialect, list[str]]:
    """Read lines up to the header; the header of an empty input is []."""
    first, told = True, False
    while (line := source.following()) is not _End:
        if not isinstance(line, Line) or not (text := _text(line)).strip():
            continue
        if first and (hint := _HINT.fullmatch(text.rstrip("\r\n"))):
            dialect, told = _said(name, dialect, hint[1]), True
            continue
        if first and not told and dialect.delimiter == ",":
            dialect = _said(name, dialect, _delimiter(text))
        first = False
        cells, what, _ = _record(source, line, dialect, 0)
        if not what and any(map(broken, cells)):
            what = _not_utf8(cells)
        if what:
            raise UserError(f"{name}:{line.number}: {what}; expected a header line")
        if any(cell.strip() for cell in cells):
            return dialect, [cell.strip() for cell in cells]
    return dialect, []


def _delimiter(header: str) -> str:
    """Return the delimiter of a CSV header: a comma, if it has one outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return next((mark for mark in _NAMES if mark in bare), ",")


def _said(name: str, dialect: Dialect, delimiter: str) -> Dialect:
    if delimiter != dialect.delimiter:
        what = _NAMES.get(delimiter, repr(delimiter))
        logging.info("%s: the fields are separated by %s", name, what)
    return dialect._replace(delimiter=delimiter)


def _rows(
    source: Source, dialect: Dialect, columns: tuple[str, ...], name: str
) -> Items:
    warned = not dialect.is_tsv
    while (line := source.following()) is not _End:
        if not isinstance(line, Line):
            yield None
            continue
        text = _text(line)
        if not text.strip() and dialect.delimiter not in text:
            continue
        cells, what, read = _record(source, line, dialect, len(columns))
        if not what and len(cells) != len(columns):
            what = _ragged(cells, columns, dialect)
        if not what and any(map(broken, cells)):
            what = _not_utf8(cells)
        if what:
            yield Bad(line.number, what, line.read)
            continue
        if not warned and any(cell.startswith('"') for cell in cells):
            warned = True
            logging.info(
                "%s:%d: a field begins with a quote that does not end it; in TSV such "
                "a quote is a letter",
                name,
                line.number,
            )
        yield Row(line.number, dict(zip(columns, cells, strict=True)), read)


def _record(
    source: Source, line: Line, dialect: Dialect, width: int
) -> tuple[list[str], str, int]:
    """Read (cells, fault, bytes) of the record that starts at a line; "" is no fault.

    A width of 0 is that of the header, which is not known yet. The lines after the
    first one of a record with a fault will be read again.
    """
    text = _text(line)
    if dialect.is_tsv or '"' not in text:
        return _one_line(text.rstrip("\r\n"), dialect, width), "", line.read
    taken = [line]

    def more() -> str | None:
        while (following := source.following()) is not _End:
            if isinstance(following, Line):  # a pause inside a record has no meaning
                taken.append(following)
                if following.read - line.read <= MAX_QUOTED:
                    return _text(following)
                break
        return None

    cells, what = _quoted(text, dialect.delimiter, more)
    if what or (width and len(cells) != width):
        source.again.extendleft(reversed(taken[1:]))
    return cells, what, taken[-1].read


def _one_line(text: str, dialect: Dialect, width: int) -> list[str]:
    """Split a line at its delimiters; a field of TSV may be quoted whole.

    A quoted field of TSV may contain tabs if the line has too many fields without it.
    """
    cells = text.split(dialect.delimiter)
    if not dialect.is_tsv or '"' not in text:
        return cells
    if width and len(cells) > width:
        joined, what = _quoted(text, dialect.delimiter, lambda: None)
        if not what and len(joined) == width:
            return joined
    return [_unquoted(cell) for cell in cells]


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"'
    if not whole or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _quoted(
    text: str, delimiter: str, more: Callable[[], str | None]
) -> tuple[list[str], str]:
    """Return (cells, fault) of a record with quotes; `more` gives the next line."""
    cells, at = list[str](), 0
    whole = re.compile(rf' *"[^"]*(?:""[^"]*)*" *(?:{re.escape(delimiter)}|[\r\n]*$)')
    while True:
        end = text.find(delimiter, at)
        start = at
        if text.startswith(" ", at) and whole.match(text, at):
            start = text.index('"', at)
        if text.startswith('"', start):
            field, text, end = _field(text, start + 1, more)
            if end < 0:
                return [], (
                    "a quote is opened and not closed; expected RFC 4180 quotes, with "
                    "each quote inside a quoted field doubled"
                )
            cells.append(field)
            while text.startswith(" ", end):
                end += 1
            if not text[end:].strip("\r\n"):
                return cells, ""
            if not text.startswith(delimiter, end):
                return [], (
                    f"{delimiter!r} expected after '\"'; expected RFC 4180 quotes, "
                    "with each quote inside a quoted field doubled"
                )
        elif end < 0:
            return [*cells, text[at:].rstrip("\r\n")], ""
        else:
            cells.append(text[at:end])
        at = end + len(delimiter)


def _field(text: str, at: int, more: Callable[[], str | None]) -> tuple[str, str, int]:
    """Read a quoted field from behind its first quote: (field, line, place after it).

    The line is the one on which the field ends. The place is -1 if it does not end.
    """
    parts = list[str]()
    while True:
        end = text.find('"', at)
        if end < 0:
            parts.append(text[at:])
            following = more()
            if following is None:
                return "", text, -1
            text, at = following, 0
        elif text.startswith('"', end + 1):
            parts.append(text[at : end + 1])
            at = end + 2
        else:
            parts.append(text[at:end])
            return "".join(parts), text, end + 1


def _ragged(cells: list[str], columns: Sequence[str], dialect: Dialect) -> str:
    what = f"the row has {len(cells)} fields; expected {len(columns)} as in the header"
    if dialect.is_tsv and any(cell.count('"') % 2 for cell in cells):
        what += ". In TSV a row is one line: a field with line ends needs CSV"
    return what


def _text(line: Line) -> str:
    # Bytes that are not UTF-8 become surrogates, which `broken` finds later.
    return line.data.decode(errors="surrogateescape")


def _not_utf8(cells: Iterable[str]) -> str:
    """Say which byte is not UTF-8; half a surrogate pair is three such bytes."""
    byte = next(c for cell in cells for c in cell if "\ud800" <= c <= "\udfff")
    return f"byte 0x{ord(byte) & 0xFF:02x} is not UTF-8; expected UTF-8 text"


def written(values: Iterable[Any], delimiter: str) -> str:
    """Return a line of CSV or TSV that is read back as these cells.

    Raises:
      UserError: a cell has a line end or half a character, which cannot be written.
    """
    cells = [as_text(value) for value in values]
    texts = [cell for cell in cells if isinstance(cell, str)]
    if any(map(broken, texts)):
        raise UserError("it has a cell that is not Unicode; expected whole characters")
    if delimiter == "\t" and any("\n" in text or "\r" in text for text in texts):
        raise UserError(
            "it has a cell with a line end, which a row of TSV cannot hold; expected "
            "CSV or JSON lines as output. Use --output=FILE.csv"
        )
    buffer = io.StringIO()
    # It quotes a cell with a carriage return only if a row may end in one.
    csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"
