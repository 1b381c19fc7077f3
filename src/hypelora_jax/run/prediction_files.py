"""Reads a user's predictions from `.npz`, `.csv` or `.jsonl`, and computes metrics."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.calibration import bootstrap, calibrators, metrics
from hypelora_jax.data import npz
from hypelora_jax.errors import UserError
from hypelora_jax.run import prediction_rows

SUM_TOLERANCE = 1e-3  # for rows of probabilities, which files often have rounded


class Labelled(NamedTuple):
    """Labelled examples of a file, in its order; rows with label -1 are left out."""

    probs: np.ndarray  # (N, Y) float64, rows sum to 1
    labels: np.ndarray  # (N,) int64, 0 .. Y - 1
    logits: np.ndarray | None = None  # (N, Y) float64, if the file has logits
    ids: np.ndarray | None = None  # (N,) if the file names its rows
    dropped: int = 0  # rows without a label
    soft: np.ndarray | None = None  # (N, Y) shares of raters, if the file has them


def read(path: epath.PathLike) -> Labelled:
    """Read the predictions in a file; its suffix names the format.

    - `.npz` has `probs` or `logits` (N, Y), `labels` (N,), and optionally `ids` (N,)
      and `soft` (N, Y), the shares of raters; pickled arrays are refused.
    - `.csv` has a header with `label, prob_0, prob_1, ...` and optionally `id`.
    - `.jsonl` has `{"label": 0, "probs": [...]}` on each line, optionally with `id`.

    The label -1 means that a row has no label; such rows are left out and counted.

    Raises:
      UserError: the file is missing, malformed or empty, a row's numbers are not
        probabilities, or its label is not a class. The message names the row's line.
    """
    path = epath.Path(path)
    texts = {".csv": prediction_rows.from_csv, ".jsonl": prediction_rows.from_jsonl}
    if path.suffix not in (".npz", *texts):
        raise UserError(
            f"{path} ends in {path.suffix!r}; expected predictions as .npz, .csv or "
            ".jsonl"
        )
    if not path.exists() or path.is_dir():
        raise UserError(f"{path} is not a file; expected a file of predictions")
    if path.suffix == ".npz":
        return of_arrays(npz.read(path), path)
    return _from_rows(path, texts[path.suffix](path))


def metrics_of_file(
    path: epath.PathLike,
    bins: int = 10,
    *,
    replicas: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute what `hypelora metrics` prints: `metrics.compute_all` of a file.

    Logits are used as they are, at temperature 1. Rows without a label are left out,
    with one warning that counts them.

    Args:
      path: a file that `read` accepts.
      bins: number of bins of the calibration errors.
      replicas: number of bootstrap replicas. If it is above 0, metrics that have an
        interval become {"value", "low", "high"}.
      level: confidence level of the intervals.
      seed: seed of the replicas, and of the labels drawn for ece_noise_floor and
        consistency_p.
    """
    return metrics_of(
        read(path), bins, replicas=replicas, level=level, seed=seed, name=str(path)
    )


def metrics_of(
    examples: Labelled,
    bins: int = 10,
    *,
    replicas: int = 0,
    level: float = 0.95,
    seed: int = 0,
    name: str = "predictions",
) -> dict[str, Any]:
    """Compute the metrics of checked predictions; see `metrics_of_file`."""
    if bins < 1:
        raise UserError(f"bins is {bins}; expected at least 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; expected at least 0")
    if examples.dropped:
        logging.getLogger(__name__).warning(
            "%s: %d rows without a label are left out", name, examples.dropped
        )
    probs, labels = examples.probs, examples.labels
    own: dict[str, Any] = {"bins": bins, "soft": examples.soft, "seed": seed}
    out = metrics.compute_all(probs, labels, **own)
    if replicas:
        own |= {"replicas": replicas, "level": level}
        out |= bootstrap.intervals(probs, labels, **own)
    return out


def of_arrays(
    arrays: Mapping[str, Any], name: epath.PathLike = "predictions"
) -> Labelled:
    """Check the arrays of an `.npz` file, or such arrays in memory.

    Args:
      arrays: `labels`, `probs` or `logits`, and optionally `ids` and `soft`, as in
        `read`.
      name: what an error calls them.

    Raises:
      UserError: as in `read`.
    """
    path, found = epath.Path(name), {n: np.asarray(x) for n, x in arrays.items()}
    kind = "probs" if "probs" in found else "logits"
    if kind not in found or "labels" not in found:
        raise UserError(
            f"{path} has {sorted(found)}; expected labels, and probs or logits"
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
    soft = _soft(path, found, values.shape, labels >= 0)
    if kind == "probs":
        out = _checked(path, lambda i: f"{path}: row {i}", values, labels, ids)
        return out._replace(soft=soft)
    _refuse(
        ~np.isfinite(values).all(axis=1),
        lambda i: (
            f"{path}: row {i}: logits {_show(values[i])}; expected finite numbers"
        ),
    )
    probs = calibrators.softmax(values)
    out = _checked(path, lambda i: f"{path}: row {i}", probs, labels, ids)
    return out._replace(logits=values[labels >= 0], soft=soft)


def _soft(
    path: epath.Path,
    arrays: dict[str, np.ndarray],
    shape: tuple[int, int],
    keep: np.ndarray,
) -> np.ndarray | None:
    """Return the shares of raters of the labelled rows, if the file has them."""
    if "soft" not in arrays:
        return None
    soft = arrays["soft"]
    if soft.dtype.kind not in "fiu" or soft.shape != shape:
        raise UserError(
            f"{path}: soft is {soft.dtype}{list(soft.shape)}; expected numbers "
            f"{list(shape)}, a share for each class"
        )
    soft = soft.astype(np.float64)
    for bad, wanted in _row_checks(soft):
        _refuse(bad & keep, _says(lambda i: f"{path}: row {i}: soft", soft, wanted))
    return soft[keep]


def _from_rows(path: epath.Path, read: list[prediction_rows.Row]) -> Labelled:
    if not read:
        raise UserError(f"{path} has no rows; expected at least one prediction")
    num_classes = len(read[0].probs)
    for row in read:
        if len(row.probs) != num_classes or num_classes < 2:
            raise UserError(
                f"{path}:{row.line}: the line has {len(row.probs)} probabilities; "
                f"expected {max(num_classes, 2)}, as many on every line"
            )
    probs = np.array([row.probs for row in read], np.float64)
    labels = np.array([row.label for row in read], object)  # any size of integer
    ids = None if read[0].id is None else np.array([str(row.id) for row in read])
    return _checked(path, lambda i: f"{path}:{read[i].line}", probs, labels, ids)


def _show(row: np.ndarray) -> str:
    shown = ", ".join(f"{x:.6g}" for x in row[:6])
    return f"[{shown}, ...]" if len(row) > 6 else f"[{shown}]"


def _refuse(bad: np.ndarray, message: Callable[[int], str]) -> None:
    """Raise a UserError for the first bad row, if there is one."""
    if bad.any():
        raise UserError(message(int(np.argmax(bad))))


def _says(
    at: Callable[[int], str], rows: np.ndarray, wanted: str
) -> Callable[[int], str]:
    return lambda i: f"{at(i)} {_show(rows[i])}; expected {wanted}"


def _checked(
    path: epath.Path,
    at: Callable[[int], str],
    probs: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray | None,
) -> Labelled:
    """Check that rows are distributions and labels valid; return the labelled rows."""
    n, num_classes = probs.shape
    for bad, wanted in _row_checks(probs):
        _refuse(bad, _says(lambda i: f"{at(i)}: probs", probs, wanted))
    _refuse(
        ((labels < -1) | (labels >= num_classes)).astype(bool),
        lambda i: (
            f"{at(i)}: label {labels[i]} is not a class; expected 0 to "
            f"{num_classes - 1}, or -1 for no label"
        ),
    )
    keep = (labels >= 0).astype(bool)
    if not keep.any():
        raise UserError(
            f"{path} has no row with a label ({n} rows in all); expected at least one"
        )
    ids = None if ids is None else ids[keep]
    labels = labels[keep].astype(np.int64)
    return Labelled(probs[keep], labels, None, ids, n - len(labels))


def _row_checks(probs: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Yield which rows fail, and what is wanted; checks may rely on earlier ones."""
    yield np.asarray(~np.isfinite(probs).all(axis=1)), "finite numbers"
    yield np.asarray((probs < 0).any(axis=1)), "no negative probability"
    off = np.asarray(np.abs(probs.sum(axis=1) - 1) > SUM_TOLERANCE)
    yield (
        off,
        f"a sum of 1 within {SUM_TOLERANCE}. If these are logits, give them as .npz",
    )
