"""Reads rows of predictions from text files, with their line numbers."""

import csv
import io
import json
import re
from typing import Any, NamedTuple

from etils import epath

from hypelora_jax import files
from hypelora_jax.errors import UserError


class Row(NamedTuple):
    """One example as written; only its form is checked."""

    line: int
    label: int
    probs: list[float]
    id: str | None


def from_csv(path: epath.Path) -> list[Row]:
    """Read a CSV file with the columns label, prob_0, prob_1, ... and optionally id.

    Raises:
      UserError: a column is wrong, a row is ragged, or a value is not a number.
    """
    reader = csv.DictReader(
        io.StringIO(files.read_text(path), newline=""),
        skipinitialspace=True,
        strict=True,
    )
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        columns = [name for name in header if re.fullmatch(r"prob_\d+", name)]
        wanted = [f"prob_{i}" for i in range(len(columns))]
        if "label" not in header or len(columns) < 2 or set(columns) != set(wanted):
            raise UserError(
                f"{path}:1: the columns are {header}; expected label, prob_0, prob_1, "
                "... without gaps"
            )
        return [_csv_row(path, reader.line_num, row, wanted) for row in reader]
    except csv.Error as e:
        raise UserError(
            f"{path}:{reader.line_num}: {e}; expected CSV with RFC 4180 quotes"
        ) from None


def _csv_row(
    path: epath.Path, line: int, row: dict[str, Any], columns: list[str]
) -> Row:
    if None in row or None in row.values():
        raise UserError(
            f"{path}:{line}: the row has more or fewer values than the header; "
            f"expected {len([k for k in row if k is not None])}"
        )
    try:
        probs = [float(row[name]) for name in columns]
        return Row(line, int(row["label"]), probs, row.get("id"))
    except ValueError as e:
        raise UserError(
            f"{path}:{line}: {e}; expected a class number as label and numbers as "
            "probabilities"
        ) from None


def from_jsonl(path: epath.Path) -> list[Row]:
    """Read JSON lines: `{"label": 0, "probs": [...]}`, optionally with `id`.

    Raises:
      UserError: a line is not such an object.
    """
    lines = enumerate(files.read_text(path).split("\n"), start=1)
    return [_json_row(path, n, s) for n, s in lines if s.strip()]


def _json_row(path: epath.Path, line: int, text: str) -> Row:
    wanted = 'expected {"label": 0, "probs": [0.9, 0.1]}'
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path}:{line}: the line is not JSON; {wanted}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}:{line}: the line is not a JSON object; {wanted}")
    if missing := [name for name in ("label", "probs") if name not in row]:
        raise UserError(f"{path}:{line}: {missing[0]} is missing; {wanted}")
    label, probs = row["label"], row["probs"]
    if type(label) is not int:
        raise UserError(f"{path}:{line}: label is {label!r}; {wanted}")
    if not isinstance(probs, list) or not all(type(p) in (int, float) for p in probs):
        raise UserError(f"{path}:{line}: probs is not a list of numbers; {wanted}")
    try:
        values = [float(p) for p in probs]
    except OverflowError:
        raise UserError(f"{path}:{line}: a number is too large; {wanted}") from None
    return Row(line, label, values, str(row["id"]) if "id" in row else None)
