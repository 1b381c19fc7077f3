"""Checks of rows of predictions: finite logits, probabilities, and labels."""

from collections.abc import Callable, Iterator

import numpy as np

from hypelora_jax.errors import UserError

SUM_TOLERANCE = 1e-3  # for rows of probabilities, which files often have rounded
LOGITS = (
    ". If these are logits, pass softmax(logits), or in a file the array `logits` of "
    "an .npz"
)
Place = Callable[[int], str]  # number of a row -> where it is in the file


def check_logits(at: Place, logits_NY: np.ndarray) -> None:
    """Check that logits are finite.

    Raises:
      UserError: a row is not; the message says where it is and shows it.
    """
    bad_N = ~np.isfinite(logits_NY).all(axis=1)
    _refuse(bad_N, at, logits_NY, "finite numbers")


def check_probs(at: Place, probs_NY: np.ndarray) -> None:
    """Check that rows of probabilities sum to 1 without negative numbers.

    Raises:
      UserError: a row does not; the message says where it is and shows it.
    """
    for bad_N, wanted in _faults(probs_NY, LOGITS):
        _refuse(bad_N, at, probs_NY, wanted)


def checked_labels(at: Place, label_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return labels as int64 after a check that each is a class, or -1.

    Raises:
      UserError: one is not; the message says where it is.
    """
    bad_N = ((label_N < -1) | (label_N >= num_classes)).astype(bool)
    if bad_N.any():
        i = int(np.argmax(bad_N))
        raise UserError(
            f"{at(i)}: label {label_N[i]} is not a class; expected 0 to "
            f"{num_classes - 1}, or -1 for no label"
        )
    return label_N.astype(np.int64)


def checked_soft(
    path: str, soft: np.ndarray, shape: tuple[int, int], keep_N: np.ndarray
) -> np.ndarray:
    """Return shares of raters in float64 after a check of the rows in `keep_N`.

    Raises:
      UserError: they do not have that shape, or a row is not a distribution.
    """
    if soft.dtype.kind not in "fiu" or soft.shape != shape:
        raise UserError(
            f"{path}: soft is {soft.dtype}{list(soft.shape)}; expected numbers "
            f"{list(shape)}, a share for each class"
        )
    soft_NY = soft.astype(np.float64)
    for bad_N, wanted in _faults(soft_NY):
        _refuse(bad_N & keep_N, lambda i: f"{path}: row {i}: soft", soft_NY, wanted)
    return soft_NY


def _faults(
    probs_NY: np.ndarray, way_out: str = ""
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield which rows fail, and what is expected; checks may rely on earlier ones.

    `way_out` follows where the numbers are finite but no probabilities.
    """
    yield np.asarray(~np.isfinite(probs_NY).all(axis=1)), "finite numbers"
    yield np.asarray((probs_NY < 0).any(axis=1)), f"no negative number{way_out}"
    off_N = np.asarray(np.abs(probs_NY.sum(axis=1) - 1) > SUM_TOLERANCE)
    yield off_N, f"a sum of 1 within {SUM_TOLERANCE}{way_out}"


def _refuse(bad_N: np.ndarray, at: Place, rows_NY: np.ndarray, wanted: str) -> None:
    """Raise a UserError for the first bad row, if there is one."""
    if bad_N.any():
        i = int(np.argmax(bad_N))
        raise UserError(f"{at(i)} {_shown(rows_NY[i])}; expected {wanted}")


def _shown(row: np.ndarray) -> str:
    shown = ", ".join(f"{x:.6g}" for x in row[:6])
    return f"[{shown}, ...]" if len(row) > 6 else f"[{shown}]"
