"""CSV, TSV, JSON lines and Parquet files as rows with their line numbers."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from hypelora_jax.data.records import BadRows, decode, read
from hypelora_jax.errors import UserError

Row = tuple[int, dict[str, Any]]  # line number (Parquet: row from 1), cells by column


def _read_csv(path: epath.Path, bad: BadRows) -> tuple[list[str], Iterator[Row]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    text = io.StringIO(decode(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except csv.Error as e:
        raise UserError(f"{path}:1: {e}; wanted a header line") from None
    return header, _csv_rows(path, reader, header, bad)


def _csv_rows(path: epath.Path, reader, header: list[str], bad: BadRows):
    line = 1
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise UserError(
                f"{path}:{line}: {e}; wanted RFC 4180 quotes: double each quote inside "
                "a quoted field and close it"
            ) from None
        if not cells:  # an empty line
            continue
        if len(cells) != len(header):
            what = f"{len(cells)} fields; wanted {len(header)} as in the header"
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
            bad.add(f"{path}:{line}", f"not JSON ({e}); wanted one object a line")
            continue
        if isinstance(row, dict):
            rows.append((line, row))
        else:
            what = f"a JSON {type(row).__name__}; wanted one object a line"
            bad.add(f"{path}:{line}", what)
    header = list(dict.fromkeys(name for _, row in rows for name in row))
    return header, iter(rows)


def _read_parquet(path: epath.Path, bad: BadRows) -> tuple[list[str], Iterator[Row]]:
    del bad  # a Parquet file is whole or broken
    # Imported here: it is slow, and few runs need it.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(read(path)))
    except pyarrow.ArrowException as e:
        why = str(e).splitlines()[0]
        raise UserError(f"{path} is no Parquet file ({why}); wanted Parquet") from None
    return table.column_names, _parquet_rows(table)


def _parquet_rows(table) -> Iterator[Row]:
    yield from enumerate(table.to_pylist(), 1)


READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
