"""Reads and writes predictions as `.npz`, `.csv`, `.tsv` or `.jsonl`."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.calibration import calibrators
from hypelora_jax.data import formats, npz
from hypelora_jax.data.formats.cells import as_text
from hypelora_jax.errors import UserError
from hypelora_jax.run import prediction_rows, row_checks
from hypelora_jax.run.prediction_rows import Row

ARRAYS = ("probs", "logits", "labels", "ids", "soft")  # of an .npz


class Contents(NamedTuple):
    """All rows of a file, in its order."""

    probs: np.ndarray  # (N, Y) float64, rows sum to 1
    labels: np.ndarray  # (N,) int64, 0 .. Y - 1, or -1 for a row without a label
    logits: np.ndarray | None = None  # (N, Y) float64, if the file has logits
    ids: np.ndarray | None = None  # (N,) if the file names its rows
    soft: np.ndarray | None = None  # (N, Y) shares of raters, if the file has them
    columns: Mapping[str, Any] = {}  # whatever else the file has, by name
    classes: tuple[str, ...] = ()  # names, if `predict` wrote the file

    @property
    def scores(self) -> np.ndarray:
        """Logits (N, Y), or else log probabilities, as a calibrator takes them."""
        if self.logits is not None:
            return self.logits
        return np.log(np.maximum(self.probs, np.finfo(np.float64).tiny))


class Labelled(NamedTuple):
    """Labelled examples of a file, in its order; rows with label -1 are left out."""

    probs: np.ndarray  # (N, Y) float64, rows sum to 1
    labels: np.ndarray  # (N,) int64, 0 .. Y - 1
    logits: np.ndarray | None = None  # (N, Y) float64, if the file has logits
    ids: np.ndarray | None = None  # (N,) if the file names its rows
    dropped: int = 0  # rows without a label
    soft: np.ndarray | None = None  # (N, Y) shares of raters, if the file has them


def read(path: epath.PathLike) -> Labelled:
    """Read the labelled rows of a file; the others are left out and counted.

    Raises:
      UserError: as in `contents`, or no row has a label.
    """
    return labelled(path, contents(path))


def contents(path: epath.PathLike) -> Contents:
    """Read the predictions in a file; its suffix names the format.

    - `.npz` has `probs` or `logits` (N, Y), `labels` (N,), and optionally `ids` (N,)
      and `soft` (N, Y), the shares of raters; pickled arrays are refused.
    - `.csv` and `.tsv` have a header with `label, prob_0, prob_1, ...` and optionally
      `id`.
    - `.jsonl` has `{"label": 0, "probs": [...]}` on each line, optionally with `id`.
    - A file with a column `confidence` was written by `hypelora predict`: its true
      labels are in `input_label`, and its classes have names.

    The label -1 means that a row has no label. If an `.npz` has both `probs` and
    `logits`, `probs` is used and `logits` is ignored, which is logged.

    Raises:
      UserError: the file is missing, malformed or empty, a row's numbers are not
        probabilities, or its label is not a class. The message names the row's line.
    """
    path = epath.Path(path)
    check_suffix(path)
    if not path.exists() or path.is_dir():
        raise UserError(f"{path} is not a file; expected a file of predictions")
    if (how := formats.format_of(str(path))) is not None:
        return _from_rows(path, prediction_rows.read(path, how))
    return of_arrays(npz.read(path), path)


def check_suffix(path: epath.PathLike) -> None:
    """Check that the suffix of a path names a format.

    Raises:
      UserError: the suffix is another one.
    """
    suffix, how = epath.Path(path).suffix, formats.format_of(str(path))
    if suffix != ".npz" and (how is None or not how.is_text):
        raise UserError(
            f"{path} ends in {suffix!r}; expected predictions as .npz, "
            f"{formats.suffixes(only_text=True)}"
        )


def labelled(path: epath.PathLike, found: Contents) -> Labelled:
    """Return the rows that have a label, and how many have none.

    Raises:
      UserError: no row has a label, or the only labels are predictions.
    """
    true = prediction_rows.TRUE_LABEL
    if found.classes and true not in found.columns:
        raise UserError(
            f"{path} was written by hypelora predict (it has a column confidence), so "
            f"its label is a prediction; expected the true labels in a column {true}. "
            "Add it, or predict a file that has labels"
        )
    keep, n = found.labels >= 0, len(found.labels)
    if not keep.any():
        raise UserError(
            f"{path} has no row with a label ({n} rows in all); expected at least "
            "one. Add the true labels"
        )
    logits, ids, soft = (
        None if x is None else x[keep] for x in (found.logits, found.ids, found.soft)
    )
    dropped = n - int(keep.sum())
    return Labelled(found.probs[keep], found.labels[keep], logits, ids, dropped, soft)


def write(path: epath.PathLike, found: Contents) -> None:
    """Write probabilities, labels, ids, soft labels and other columns.

    The file is replaced in one step, so no reader sees half of it. The suffix names
    the format, which need not be that of the file it was read from. Logits are not
    written. A warning names what else is left out: what the format has no place for,
    and the sets and abstentions of `predict`, which were made from other probabilities.

    Raises:
      UserError: the suffix names no format.
    """
    path = epath.Path(path)
    check_suffix(path)
    if (how := formats.format_of(str(path))) is not None:
        rows, left = _rows(found)
        files.write_whole(path, prediction_rows.written(rows, how))
    else:
        arrays, left = _arrays(found)
        npz.write(path, arrays)
    if left:
        logging.getLogger(__name__).warning(
            "%s is written without %s", path, ", ".join(left)
        )


def _rows(found: Contents) -> tuple[list[Row], list[str]]:
    """(rows of a text file, names of what is left out)."""
    n, own = len(found.labels), {} if found.ids is None else {"id": found.ids}
    left = [] if found.soft is None else ["soft"]
    cells: dict[str, list] = {}
    for name, column in {**own, **found.columns}.items():
        fits = not isinstance(column, np.ndarray)
        fits = fits or (column.shape == (n,) and column.dtype.kind in "biufU")
        if not fits or prediction_rows.is_taken(name, bool(found.classes)):
            left.append(name)
            continue
        cells[name] = column.tolist() if isinstance(column, np.ndarray) else column
    probs, labels = found.probs.tolist(), found.labels.tolist()
    rows = [
        Row(i, labels[i], probs[i], {k: x[i] for k, x in cells.items()}, found.classes)
        for i in range(n)
    ]
    return rows, left


def _arrays(found: Contents) -> tuple[dict[str, np.ndarray], list[str]]:
    """(arrays of an .npz, names of what is left out)."""
    arrays, left = {"probs": found.probs, "labels": found.labels}, list[str]()
    own = {"ids": found.ids, "soft": found.soft}
    arrays |= {name: x for name, x in own.items() if x is not None}
    for name, column in found.columns.items():
        if name in ARRAYS or (found.classes and name in prediction_rows.STALE):
            left.append(name)
        elif name == "id":
            continue  # it is in `ids`
        elif isinstance(column, np.ndarray):
            arrays[name] = column
        else:
            arrays[name] = np.array([as_text(x) for x in column], str)
    return arrays, left


def of_arrays(
    arrays: Mapping[str, Any], name: epath.PathLike = "predictions"
) -> Contents:
    """Check the arrays of an `.npz` file, or such arrays in memory.

    Args:
      arrays: `labels`, `probs` or `logits`, and optionally `ids` and `soft`. If both
        `probs` and `logits` are there, `logits` is ignored, which is logged.
      name: what error messages call the arrays.

    Raises:
      UserError: as in `contents`.
    """
    path, found = epath.Path(name), {n: np.asarray(x) for n, x in arrays.items()}
    kind = "probs" if "probs" in found else "logits"
    there = {"labels": "labels" in found, "probs or logits": kind in found}
    if lacks := [names for names, given in there.items() if not given]:
        raise UserError(
            f"{path} has the arrays {sorted(found)}; expected {', and '.join(lacks)} "
            "as well"
        )
    if {"probs", "logits"} <= found.keys():
        logging.getLogger(__name__).warning(
            "%s has both probs and logits; probs are used, and logits are ignored", path
        )
    values, labels, ids = found[kind], found["labels"], found.get("ids")
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] < 2:
        raise UserError(
            f"{path}: {kind} is {values.dtype}{list(values.shape)}; expected numbers "
            "(N, Y) with Y at least 2 classes"
        )
    if labels.dtype.kind not in "iu" or labels.shape != values.shape[:1]:
        raise UserError(
            f"{path}: labels is {labels.dtype}{list(labels.shape)}; expected integers "
            f"[{len(values)}], one for each row of {kind}"
        )
    if ids is not None and ids.shape != labels.shape:
        raise UserError(
            f"{path}: ids is {list(ids.shape)}; expected [{len(labels)}], one for "
            "each label"
        )
    values = values.astype(np.float64)
    soft = found.get("soft")
    if soft is not None:
        soft = row_checks.checked_soft(str(path), soft, values.shape, labels >= 0)
    logits = values if kind == "logits" else None
    if logits is not None:
        row_checks.check_logits(lambda i: f"{path}: row {i}: logits", values)
        values = calibrators.softmax(values)
    row_checks.check_probs(lambda i: f"{path}: row {i}: probs", values)
    classes = values.shape[1]
    labels = row_checks.checked_labels(lambda i: f"{path}: row {i}", labels, classes)
    columns = {name: x for name, x in found.items() if name not in ARRAYS}
    return Contents(values, labels, logits, ids, soft, columns)


def _from_rows(path: epath.Path, read: list[Row]) -> Contents:
    if not read:
        raise UserError(f"{path} has no rows; expected at least one prediction")
    num_classes, classes = len(read[0].probs), read[0].classes
    for row in read:
        if num_classes < 2:
            raise UserError(
                f"{path}:{row.line}: the line has {num_classes} probability; expected "
                "two or more classes"
            )
        if len(row.probs) != num_classes:
            raise UserError(
                f"{path}:{row.line}: the line has {len(row.probs)} probabilities; "
                f"expected {num_classes}, as on line {read[0].line}"
            )
        if row.classes != classes:
            raise UserError(
                f"{path}:{row.line}: classes are {list(row.classes)}; expected "
                f"{list(classes)} as on line {read[0].line}"
            )
    probs = np.array([row.probs for row in read], np.float64)
    row_checks.check_probs(lambda i: f"{path}:{read[i].line}: probs", probs)
    labels = np.array([row.label for row in read], object)  # any size of integer
    labels = row_checks.checked_labels(
        lambda i: f"{path}:{read[i].line}", labels, num_classes
    )
    names = dict.fromkeys(name for row in read for name in row.cells)
    columns = {name: [row.cells.get(name) for row in read] for name in names}
    ids = np.array([str(x) for x in columns["id"]]) if "id" in columns else None
    return Contents(probs, labels, None, ids, None, columns, classes)
