"""Predictions in files: `.npz`, `.csv` and `.jsonl` in, `.npz` out."""

import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.calibration import bootstrap, calibrators, metrics
from hypelora_jax.errors import UserError
from hypelora_jax.run import prediction_rows

SUM_TOLERANCE = 1e-3  # of a row of probabilities: files often hold rounded ones


class Predictions(NamedTuple):
    """Labelled examples of a file, in its order; rows with label -1 are left out."""

    probs: np.ndarray  # (N, Y) float64, rows sum to 1
    labels: np.ndarray  # (N,) int64, 0 .. Y - 1
    logits: np.ndarray | None = None  # (N, Y) float64, if the file holds logits
    ids: np.ndarray | None = None  # (N,) if the file names its rows
    dropped: int = 0  # rows without a label
    soft: np.ndarray | None = None  # (N, Y) shares of raters, if the file has them


def read(path: epath.PathLike) -> Predictions:
    """Predictions of a file; the suffix says the format.

    `.npz`: `probs` or `logits` (N, Y), `labels` (N,), perhaps `ids` (N,) and `soft`
    (N, Y), the shares of raters; pickled arrays are refused. `.csv`: a header with
    `label, prob_0, prob_1, ...`. `.jsonl`: `{"label": 0, "probs": [...]}` on each line.
    Both may have an `id`. The label -1 means that there is none: such rows are left out
    and counted.

    Raises:
      UserError: a file that is missing, malformed or empty, or a row whose numbers are
        no probabilities or whose label is no class, with the row's line.
    """
    path = epath.Path(path)
    texts = {".csv": prediction_rows.from_csv, ".jsonl": prediction_rows.from_jsonl}
    if path.suffix not in (".npz", *texts):
        raise UserError(
            f"{path} ends in {path.suffix!r}; wanted predictions as .npz, .csv, .jsonl"
        )
    if not path.exists() or path.is_dir():
        raise UserError(f"{path} is not a file; wanted a file of predictions")
    if path.suffix == ".npz":
        return _read_npz(path)
    return _from_rows(path, texts[path.suffix](path))


def arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name; nothing is unpickled.

    Raises:
      UserError: a file that is no `.npz`, is damaged, or holds pickled objects.
    """
    path = epath.Path(path)
    try:
        data = path.read_bytes()
        if not data.startswith(b"PK"):  # np.load would take anything else for a pickle
            raise UserError(f"{path} is no .npz file; wanted what np.savez writes")
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        if isinstance(e, UserError):
            raise
        if "pickle" in str(e):
            raise UserError(
                f"{path} holds pickled objects, which are never loaded; wanted arrays "
                "of numbers: save them with np.savez and without dtype=object"
            ) from None
        raise UserError(
            f"{path} is no readable .npz file ({e}); write it again"
        ) from None


def write_npz(
    path: epath.PathLike,
    logits: Any,
    labels: Any,
    ids: Iterable[Any] | None = None,
    members: Any = None,
    soft: Any = None,
) -> None:
    """Write raw logits (N, Y), labels (N,) (-1: none) and ids (N,; default 0 .. N - 1).

    `members` (K, N, Y), raw logits of what the prediction averages, become
    `member_logits`; `soft` (N, Y) are shares of raters. The file appears whole or not
    at all.
    """
    path = epath.Path(path)
    labels = np.asarray(labels)
    names = np.arange(len(labels)) if ids is None else np.asarray(list(ids))
    if names.dtype == object:
        names = names.astype(str)
    buffer = io.BytesIO()
    more = {"member_logits": members, "soft": soft}
    own = {name: np.asarray(x) for name, x in more.items() if x is not None}
    logits = np.asarray(logits)
    np.savez_compressed(buffer, logits=logits, labels=labels, ids=names, **own)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def metrics_of_file(
    path: epath.PathLike,
    bins: int = 10,
    *,
    replicas: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """What `hypelora metrics` prints: `metrics.compute_all` of a file's predictions.

    Logits count as they are, at temperature 1. Rows without a label are left out, with
    one warning that counts them.

    Args:
      path: of a file as `read` takes it.
      bins: of the calibration errors.
      replicas: above 0, metrics that have an interval become {"value", "low", "high"},
        from as many bootstrap replicas.
      level: of the intervals.
      seed: of the replicas, and of the labels drawn for ece_noise_floor and
        consistency_p.
    """
    if bins < 1:
        raise UserError(f"bins is {bins}; wanted at least 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; wanted at least 0")
    held = read(path)
    if held.dropped:
        logging.getLogger(__name__).warning(
            "%s: %d rows without a label are left out", path, held.dropped
        )
    rows, options = (held.probs, held.labels), {"bins": bins, "soft": held.soft}
    options["seed"] = seed
    out = metrics.compute_all(*rows, **options)
    if replicas:
        options |= {"replicas": replicas, "level": level}
        out |= bootstrap.intervals(*rows, **options)
    return out


def _read_npz(path: epath.Path) -> Predictions:
    held = arrays(path)
    kind = "probs" if "probs" in held else "logits"
    if kind not in held or "labels" not in held:
        raise UserError(
            f"{path} holds {sorted(held)}; wanted labels, and probs or logits"
        )
    values, labels, ids = held[kind], held["labels"], held.get("ids")
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] < 2:
        raise UserError(
            f"{path}: {kind} is {values.dtype}{list(values.shape)}; wanted numbers "
            "(N, Y) with Y at least 2 classes"
        )
    if labels.dtype.kind not in "iu" or labels.shape != values.shape[:1]:
        raise UserError(
            f"{path}: labels is {labels.dtype}{list(labels.shape)}; wanted integers "
            f"[{len(values)}], one for each row of {kind}"
        )
    if ids is not None and ids.shape != labels.shape:
        raise UserError(f"{path}: ids is {list(ids.shape)}; wanted [{len(labels)}]")
    values = values.astype(np.float64)
    soft = _soft(path, held, values.shape, labels >= 0)
    if kind == "probs":
        out = _checked(path, lambda i: f"{path}: row {i}", values, labels, ids)
        return out._replace(soft=soft)
    _refuse(
        ~np.isfinite(values).all(axis=1),
        lambda i: f"{path}: row {i}: logits {_show(values[i])}; wanted finite numbers",
    )
    probs = calibrators.softmax(values)
    out = _checked(path, lambda i: f"{path}: row {i}", probs, labels, ids)
    return out._replace(logits=values[labels >= 0], soft=soft)


def _soft(
    path: epath.Path,
    held: dict[str, np.ndarray],
    shape: tuple[int, int],
    keep: np.ndarray,
) -> np.ndarray | None:
    """Shares of raters of the labelled rows, if the file has them."""
    if "soft" not in held:
        return None
    soft = held["soft"]
    if soft.dtype.kind not in "fiu" or soft.shape != shape:
        raise UserError(
            f"{path}: soft is {soft.dtype}{list(soft.shape)}; wanted numbers "
            f"{list(shape)}, a share for each class"
        )
    soft = soft.astype(np.float64)
    for bad, wanted in _row_checks(soft):
        _refuse(
            bad & keep,
            lambda i, w=wanted: f"{path}: row {i}: soft {_show(soft[i])}; wanted {w}",
        )
    return soft[keep]


def _from_rows(path: epath.Path, read: list[prediction_rows.Row]) -> Predictions:
    if not read:
        raise UserError(f"{path} has no rows; wanted at least one prediction")
    num_classes = len(read[0].probs)
    for row in read:
        if len(row.probs) != num_classes or num_classes < 2:
            raise UserError(
                f"{path}:{row.line}: {len(row.probs)} probabilities; wanted "
                f"{max(num_classes, 2)}, as many on every line"
            )
    probs = np.array([row.probs for row in read], np.float64)
    labels = np.array([row.label for row in read], object)  # any size of integer
    ids = None if read[0].id is None else np.array([str(row.id) for row in read])
    return _checked(path, lambda i: f"{path}:{read[i].line}", probs, labels, ids)


def _show(row: np.ndarray) -> str:
    shown = ", ".join(f"{x:.6g}" for x in row[:6])
    return f"[{shown}, ...]" if len(row) > 6 else f"[{shown}]"


def _refuse(bad: np.ndarray, message: Callable[[int], str]) -> None:
    """UserError for the first bad row, if there is one."""
    if bad.any():
        raise UserError(message(int(np.argmax(bad))))


def _checked(
    path: epath.Path,
    at: Callable[[int], str],
    probs: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray | None,
) -> Predictions:
    """Predictions if every row is a distribution and every label a class or -1."""
    n, num_classes = probs.shape
    for bad, wanted in _row_checks(probs):
        _refuse(
            bad, lambda i, w=wanted: f"{at(i)}: probs {_show(probs[i])}; wanted {w}"
        )
    _refuse(
        ((labels < -1) | (labels >= num_classes)).astype(bool),
        lambda i: (
            f"{at(i)}: label {labels[i]} is no class; wanted 0 to {num_classes - 1}, "
            "or -1 for none"
        ),
    )
    keep = (labels >= 0).astype(bool)
    if not keep.any():
        raise UserError(f"{path} has no row with a label ({n} rows in all)")
    ids = None if ids is None else ids[keep]
    labels = labels[keep].astype(np.int64)
    return Predictions(probs[keep], labels, None, ids, n - len(labels))


def _row_checks(probs: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Which rows fail, and what was wanted; a later check may rely on earlier ones."""
    yield ~np.isfinite(probs).all(axis=1), "finite numbers"
    yield (probs < 0).any(axis=1), "no negative probability"
    off = np.abs(probs.sum(axis=1) - 1) > SUM_TOLERANCE
    yield off, f"a sum of 1 within {SUM_TOLERANCE}: give logits as .npz, if they are"
