"""Readers of files with one example per row: CSV, TSV, JSON lines and Parquet.

They are strict: text must be UTF-8, and a bad row is refused with its file and line, or
skipped and counted if the user asks for that.
"""

import csv
import io
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging
from etils import epath

from hypelora_jax.errors import UserError

Row = tuple[int, dict[str, Any]]  # line number (Parquet: row from 1), cells by column


def decode(path: epath.Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
      UserError: the file is missing, empty or not UTF-8 (with file and line).
    """
    data = read(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        byte = e.object[e.start]
        raise UserError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; expected UTF-8 text. "
            "Convert the file (iconv -t utf-8)"
        ) from None


def read(path: epath.Path) -> bytes:
    """Return the bytes of a data file.

    Raises:
      UserError: the file is missing, a folder, unreadable or empty.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a data file. Check the path")
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e}); expected a data file") from None
    if not data.strip():
        raise UserError(f"{path} is empty; expected a data file with examples")
    return data


def listed(names: Iterable[str]) -> str:
    """Return the first 12 names in one line, for error messages."""
    names = [" ".join(name.split()) or "(empty)" for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def shown(value: Any) -> str:
    """Return a value for error messages: quoted, cut short, in one line."""
    return " ".join(reprlib.repr(value).split())


class BadRows:
    """Refuses bad rows, or counts them if `data.on_bad_row` is "skip"."""

    def __init__(self, on_bad_row: str):
        self._skip = on_bad_row == "skip"
        self._seen: list[str] = []

    def add(self, where: str, what: str) -> None:
        """Report a bad row at `where` ("file:line").

        Raises:
          UserError: always, unless bad rows are skipped.
        """
        message = f"{where}: {what}"
        if not self._skip:
            raise UserError(f"{message}. Repair it, or set data.on_bad_row=skip")
        self._seen.append(message)

    def warn(self) -> None:
        """Log one warning for all the rows that were skipped, if any."""
        if self._seen:
            logging.warning(
                "skipped %d bad rows, the first: %s", len(self._seen), self._seen[0]
            )


def _read_csv(path: epath.Path, bad: BadRows) -> tuple[list[str], Iterator[Row]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    text = io.StringIO(decode(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except csv.Error as e:
        raise UserError(f"{path}:1: {e}; expected a header line") from None
    return header, _csv_rows(path, reader, header, bad)


def _csv_rows(
    path: epath.Path, reader: Any, header: list[str], bad: BadRows
) -> Iterator[Row]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise UserError(
                f"{path}:{line}: {e}; expected RFC 4180 quotes. Double each quote "
                "inside a quoted field and close it"
            ) from None
        if not cells:  # an empty line
            continue
        if len(cells) != len(header):
            what = (
                f"the row has {len(cells)} fields; expected {len(header)} as in the "
                "header"
            )
            bad.add(f"{path}:{line}", what)
            continue
        yield line, dict(zip(header, cells, strict=True))


def _read_jsonl(path: epath.Path, bad: BadRows) -> tuple[list[str], Iterator[Row]]:
    rows = []
    for line, text in enumerate(decode(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as e:
            bad.add(
                f"{path}:{line}",
                f"the line is not JSON ({e}); expected one object per line",
            )
            continue
        if isinstance(row, dict):
            rows.append((line, row))
        else:
            what = (
                f"the line is a JSON {type(row).__name__}; expected one object per line"
            )
            bad.add(f"{path}:{line}", what)
    header = list(dict.fromkeys(name for _, row in rows for name in row))
    return header, iter(rows)


def _read_parquet(path: epath.Path, bad: BadRows) -> tuple[list[str], Iterator[Row]]:
    del bad  # a Parquet file cannot have single bad rows
    # The import is local because it is slow and few runs need it.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(read(path)))
    except pyarrow.ArrowException as e:
        why = str(e).splitlines()[0]
        raise UserError(
            f"{path} is not a Parquet file ({why}); expected Parquet"
        ) from None
    return table.column_names, iter(list(enumerate(table.to_pylist(), 1)))


# suffix of a file -> reader: (path, bad) -> the names of the columns, and the rows
READERS: dict[str, Callable[[epath.Path, BadRows], tuple[list[str], Iterator[Row]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
