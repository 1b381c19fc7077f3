"""The one reader of tables: CSV, TSV, JSON lines and Parquet, with one set of rules.

Training, prediction and metrics read their files here, row by row, so a file means the
same to all of them. What a reader assumed, such as another delimiter, is logged.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from etils import epath

from hypelora_jax.data.formats import delimited, json_lines, parquet
from hypelora_jax.data.formats import lines as lines_lib
from hypelora_jax.data.formats.sheet import Bad, Items, Row, Sheet
from hypelora_jax.errors import UserError


class Format(NamedTuple):
    """A format of rows: how it is recognised, and what separates its cells."""

    suffixes: tuple[str, ...]
    delimiter: str = ""  # of a text with a header line, whose cells are texts
    is_text: bool = True  # it has lines, so that it can be streamed and written

    @property
    def is_table(self) -> bool:
        """Whether there is a header line, and cells are texts."""
        return bool(self.delimiter)


ReadSheet = Callable[[str, Format], Sheet]  # path, format

FORMATS = {
    "jsonl": Format((".jsonl", ".ndjson")),
    "csv": Format((".csv",), ","),
    "tsv": Format((".tsv",), "\t"),
    "parquet": Format((".parquet",), is_text=False),
}


def suffixes(only_text: bool = False) -> str:
    """Return the suffixes for messages, all or those of formats that have lines."""
    some = [f for f in FORMATS.values() if f.is_text or not only_text]
    return ", ".join(suffix for one in some for suffix in one.suffixes)


def format_of(path: str) -> Format | None:
    """Return the format that the suffix of a path names, or None if it names none."""
    path = path.lower()
    return next((f for f in FORMATS.values() if path.endswith(f.suffixes)), None)


def read(path: str, how: Format) -> Sheet:
    """Return the sheet of a file, or of stdin for "-".

    Raises:
      UserError: there is no such file, or its header cannot be read; the message names
        file and line.
    """
    if path != "-":
        _check_file(path)
    if not how.is_text:
        return parquet.read(path)
    name, lines = "stdin" if path == "-" else path, lines_lib.read(path)
    if how.is_table:
        return delimited.read(lines, name, how.delimiter)
    return json_lines.read(lines, name)


def read_once(paths: Collection[str]) -> ReadSheet:
    """Return a `read` that keeps the rows of these files in memory.

    Each of them is parsed once, however often it is read, and its texts are shared.
    """
    found: dict[str, Sheet] = {}

    def read_kept(path: str, how: Format) -> Sheet:
        if path not in paths:
            return read(path, how)
        if path not in found:
            sheet = read(path, how)
            found[path] = _rows_kept(sheet) if how.is_text else _columns_kept(sheet)
        return found[path]

    return read_kept


def _rows_kept(sheet: Sheet) -> Sheet:
    """Return the sheet of a text, whose lines are read as a whole, in memory."""
    kept = [item for item in sheet.rows((), False) if item is not None]

    def rows(columns: Sequence[str], others: bool) -> Items:
        del columns, others
        yield from kept

    if sheet.columns is None:
        cells = (item.cells for item in kept if isinstance(item, Row))
        names = dict.fromkeys(name for one in cells for name in one)
        sheet = sheet._replace(columns=tuple(names))
    return sheet._replace(rows=rows)


def _columns_kept(sheet: Sheet) -> Sheet:
    """Return the sheet of a format that stores columns, each in memory once read."""
    kept: dict[str, list[Any]] = {}  # cells, or `Bad` for one that cannot be read

    def cells(name: str) -> list[Any]:
        if name not in kept:
            items = sheet.rows([name], False)
            kept[name] = [x.cells[name] if isinstance(x, Row) else x for x in items]
        return kept[name]

    def rows(columns: Sequence[str], others: bool) -> Items:
        del others
        columns = list(dict.fromkeys(columns))
        for n, row in enumerate(zip(*map(cells, columns), strict=True), 1):
            bad = next((cell for cell in row if isinstance(cell, Bad)), None)
            yield bad or Row(n, dict(zip(columns, row, strict=True)), 0)

    return sheet._replace(rows=rows)


def _check_file(path: str) -> None:
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"{path} does not exist; expected a data file. Check the path")
    if file.is_dir():
        raise UserError(f"{path} is a folder; expected a data file. Check the path")
