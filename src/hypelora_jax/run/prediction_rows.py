"""Rows of predictions in CSV files and JSON lines: read with line numbers, and written.

`hypelora predict` writes such rows too. There `label` is the prediction, `confidence`
its probability and `input_label` the true label, and classes have names. The column
`confidence` tells these rows from all others.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.data import formats, labels
from hypelora_jax.data.formats import Format, delimited, sheet
from hypelora_jax.data.formats.cells import as_json, listed
from hypelora_jax.data.formats.sheet import Bad, Sheet
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


def read(path: epath.Path, how: Format) -> list[Row]:
    """Read a table or JSON lines of predictions.

    A table has the columns label, prob_0, prob_1, ..., and a line of JSON is
    `{"label": 0, "probs": [...]}`, unless `predict` wrote them.

    Raises:
      UserError: a column is missing, or a line is not such a row.
    """
    found = formats.read(str(path), how)
    if found.columns is None:
        return [_json_row(path, *row) for row in _rows(path, found)]
    label, columns, classes = _columns(found)
    return [
        _table_row(path, line, cells, label, columns, classes)
        for line, cells in _rows(path, found)
    ]


def _rows(path: epath.Path, found: Sheet) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, cells); a bad line is an error, because each prediction counts."""
    for item in found.rows((), True):
        if isinstance(item, Bad):
            raise UserError(f"{path}:{item.line}: {item.what}")
        if item is not None:
            yield item.line, item.cells


def _columns(found: Sheet) -> tuple[str, list[str], tuple[str, ...]]:
    """Return (column of the labels, of the probabilities, classes if they have names).

    Raises:
      UserError: a column is missing, or there are two of its name.
    """
    header = found.columns or ()
    if CONFIDENCE in header:
        columns = [name for name in header if name.startswith(PROB)]
        classes, label = tuple(x.removeprefix(PROB) for x in columns), TRUE_LABEL
        complete = len(columns) > 1
    else:
        columns = [name for name in header if re.fullmatch(rf"{PROB}[0-9]+", name)]
        wanted = [f"{PROB}{i}" for i in range(len(columns))]
        classes, label = (), "label"
        complete = len(columns) > 1 and set(columns) == set(wanted)
        columns = wanted
    if "label" not in header or not complete:
        has = listed(header) or "none"
        raise UserError(
            f"{found.name}:1: the columns are {has}; expected label, prob_0, prob_1, "
            "... without gaps"
        )
    for name in (*columns, label):
        sheet.column(found, (name,))
    return label, columns, classes


def _table_row(
    path: epath.Path,
    line: int,
    row: dict[str, Any],
    label_column: str,
    columns: Sequence[str],
    classes: tuple[str, ...],
) -> Row:
    cells = {name: x for name, x in row.items() if name not in columns}
    try:
        probs = [float(row[name]) for name in columns]
        if classes:
            label = _true_class(f"{path}:{line}", row.get(label_column), classes)
            return _predicted(line, label, probs, cells, classes)
        return Row(line, int(cells.pop(label_column)), probs, cells)
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


def _true_class(where: str, cell: Any, classes: Sequence[str]) -> int:
    """Return the number of the class that a true label names; -1 for no label."""
    label = labels.scalar(cell)
    number = labels.reader(classes)(label)
    if number is not None:
        return number
    if labels.means_none(label, classes):
        return -1
    raise UserError(
        f"{where}: {TRUE_LABEL} is {label!r}; expected one of the classes "
        f"{', '.join(classes)}"
    )


def _json_row(path: epath.Path, line: int, row: dict[str, Any]) -> Row:
    wanted = 'expected {"label": 0, "probs": [0.9, 0.1]}'
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


def written(rows: Sequence[Row], how: Format) -> str:
    """Return rows as a text that `read` reads; numbers have all their digits.

    Raises:
      UserError: a cell cannot be written in the format.
    """
    if not how.is_table:
        return "".join(map(_json_line, rows))
    classes = rows[0].classes or range(len(rows[0].probs))
    names = dict.fromkeys(name for row in rows for name in _answer(row))
    header = [*names, *(f"{PROB}{name}" for name in classes)]
    lines = [delimited.written(header, how.delimiter)]
    for row in rows:
        cells = _answer(row)
        values = [*(cells.get(name) for name in names), *row.probs]
        lines.append(delimited.written(values, how.delimiter))
    return "".join(lines)


def _json_line(row: Row) -> str:
    probs: Any = row.probs
    if row.classes:
        probs = dict(zip(row.classes, row.probs, strict=True))
    return as_json({**_answer(row), "probs": probs}) + "\n"
