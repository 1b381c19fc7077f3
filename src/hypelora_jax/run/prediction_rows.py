"""Rows of predictions in CSV files and JSON lines: read with line numbers, and written.

`hypelora predict` writes such rows too. There `label` is the prediction, `confidence`
its probability and `input_label` the true label, and classes have names. The column
`confidence` tells these rows from all others.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.errors import UserError

CONFIDENCE, TRUE_LABEL, PROB = "confidence", "input_label", "prob_"
ANSWER = ("label", CONFIDENCE, "probs")  # made from the probabilities of a row
STALE = ("set", "abstained")  # `predict` made them from other probabilities


class Row(NamedTuple):
    """One example as written; only its form is checked."""

    line: int
    label: int  # the true class, -1 if there is none
    probs: list[float]
    cells: Mapping[str, Any]  # the other columns by name
    classes: tuple[str, ...] = ()  # names, if `predict` wrote the row


def from_csv(path: epath.Path) -> list[Row]:
    """Read a CSV file with label, prob_0, prob_1, ... or one that `predict` wrote.

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
        classes = _classes_of(header) if CONFIDENCE in header else ()
        columns = [name for name in header if re.fullmatch(rf"{PROB}\d+", name)]
        wanted = [f"{PROB}{i}" for i in range(len(columns))]
        if classes:
            wanted = columns = [PROB + name for name in classes]
        if "label" not in header or len(columns) < 2 or set(columns) != set(wanted):
            raise UserError(
                f"{path}:1: the columns are {header}; expected label, prob_0, prob_1, "
                "... without gaps"
            )
        return [_csv_row(path, reader.line_num, row, wanted, classes) for row in reader]
    except csv.Error as e:
        raise UserError(
            f"{path}:{reader.line_num}: {e}; expected CSV with RFC 4180 quotes"
        ) from None


def _classes_of(header: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes in the header of a table that `predict` wrote."""
    return tuple(name.removeprefix(PROB) for name in header if name.startswith(PROB))


def _csv_row(
    path: epath.Path,
    line: int,
    row: dict[str, Any],
    columns: Sequence[str],
    classes: tuple[str, ...],
) -> Row:
    if None in row or None in row.values():
        raise UserError(
            f"{path}:{line}: the row has more or fewer values than the header; "
            f"expected {len([k for k in row if k is not None])}"
        )
    cells = {name: x for name, x in row.items() if name not in columns}
    try:
        probs = [float(row[name]) for name in columns]
        if classes:
            label = _true_class(f"{path}:{line}", row.get(TRUE_LABEL), classes)
            return _predicted(line, label, probs, cells, classes)
        return Row(line, int(cells.pop("label")), probs, cells)
    except ValueError as e:
        if isinstance(e, UserError):
            raise
        raise UserError(
            f"{path}:{line}: {e}; expected a class number as label and numbers as "
            "probabilities"
        ) from None


def _predicted(
    line: int,
    label: int,
    probs: list[float],
    cells: Mapping[str, Any],
    classes: tuple[str, ...],
) -> Row:
    kept = {name: x for name, x in cells.items() if name not in ANSWER}
    return Row(line, label, probs, kept, classes)


def _true_class(where: str, label: Any, classes: Sequence[str]) -> int:
    """Number of the class that a true label names; -1 for an empty label."""
    if label is None or label == "":
        return -1
    name = str(label).lower() if isinstance(label, bool) else str(label)
    if isinstance(label, float) and label.is_integer():
        name = str(int(label))
    if name not in classes:
        raise UserError(
            f"{where}: {TRUE_LABEL} is {name!r}; expected one of the classes "
            f"{', '.join(classes)}"
        )
    return list(classes).index(name)


def from_jsonl(path: epath.Path) -> list[Row]:
    """Read JSON lines: `{"label": 0, "probs": [...]}`, or lines that `predict` wrote.

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
    label, probs, classes = row["label"], row["probs"], ()
    if CONFIDENCE in row:
        wanted = 'expected {"CLASS": 0.9, ...} as predict writes them'
        if not isinstance(probs, dict):
            raise UserError(f"{path}:{line}: probs is not an object; {wanted}")
        classes, probs = tuple(probs), list(probs.values())
        label = _true_class(f"{path}:{line}", row.get(TRUE_LABEL), classes)
    if type(label) is not int:
        raise UserError(f"{path}:{line}: label is {label!r}; {wanted}")
    if not isinstance(probs, list) or not all(type(p) in (int, float) for p in probs):
        raise UserError(f"{path}:{line}: probs is not a list of numbers; {wanted}")
    try:
        values = [float(p) for p in probs]
    except OverflowError:
        raise UserError(f"{path}:{line}: a number is too large; {wanted}") from None
    if classes:
        return _predicted(line, label, values, row, classes)
    cells = {name: x for name, x in row.items() if name not in ("label", "probs")}
    return Row(line, label, values, cells)


def is_taken(name: str, predicted: bool) -> bool:
    """Whether a column would be read as, or contradict, the answer in a row.

    `predicted` says whether the rows are written as `predict` writes them.
    """
    if predicted and (name in STALE or name.startswith(PROB)):
        return True
    return name in ANSWER or re.fullmatch(rf"{PROB}\d+", name) is not None


def _answer(row: Row) -> dict[str, Any]:
    """The cells of a row as they are written, without its probabilities."""
    if not row.classes:
        return {**row.cells, "label": row.label}
    best = int(np.argmax(row.probs))
    answer = {"label": row.classes[best], CONFIDENCE: row.probs[best]}
    return {**row.cells, **answer}


def to_csv(rows: Sequence[Row]) -> str:
    """Write rows as a CSV file that `from_csv` reads; numbers have all their digits."""
    classes = rows[0].classes or range(len(rows[0].probs))
    names = dict.fromkeys(name for row in rows for name in _answer(row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*names, *(f"{PROB}{name}" for name in classes)])
    for row in rows:
        cells = _answer(row)
        writer.writerow([*(cell(cells.get(name)) for name in names), *row.probs])
    return buffer.getvalue()


def cell(value: Any) -> Any:
    """Return a value as a table cell: lists, objects and booleans as JSON."""
    if isinstance(value, bool | list | dict):
        return files.to_json(value, ensure_ascii=False)
    return "" if value is None else value


def to_jsonl(rows: Sequence[Row]) -> str:
    """Write rows as JSON lines that `from_jsonl` reads."""
    lines = []
    for row in rows:
        probs: Any = row.probs
        if row.classes:
            probs = dict(zip(row.classes, row.probs, strict=True))
        lines.append(files.to_json({**_answer(row), "probs": probs}) + "\n")
    return "".join(lines)
