"""The one reader of tables: CSV, TSV, JSON lines and Parquet, with one set of rules.

Training, prediction and metrics read their files here, row by row, so a file means the
same to all of them. What a reader assumed, such as another delimiter, is logged.
"""

from typing import NamedTuple

from etils import epath

from hypelora_jax.data.formats import delimited, json_lines, parquet
from hypelora_jax.data.formats import lines as lines_lib
from hypelora_jax.data.formats.sheet import Sheet
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


def _check_file(path: str) -> None:
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"{path} does not exist; expected a data file. Check the path")
    if file.is_dir():
        raise UserError(f"{path} is a folder; expected a data file. Check the path")
