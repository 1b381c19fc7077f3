"""Task scores in float64 on the host: MCC, F1, correlations, as GLUE reports them."""

from collections.abc import Callable, Iterable

import numpy as np
import scipy

from hypelora_jax.errors import UserError


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of predictions (N,) equal to their labels (N,), 0 to 1."""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of the positive class 1, 0 to 1.

    It is 0 if no positive row is found, even if no row is positive (zero_division=0 of
    sklearn).
    """
    predicted, true = np.asarray(predictions) == 1, np.asarray(labels) == 1
    found = int(np.sum(predicted & true))
    return 2 * found / max(int(np.sum(predicted)) + int(np.sum(true)), 1)


def mcc(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation, -1 to 1, for any number of classes (Gorodkin, 2004).

    It is 0 if the predictions or the labels are constant, as in sklearn.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    classes = np.union1d(predictions, labels)[None, :]
    p_Y = (predictions[:, None] == classes).astype(np.float64).mean(axis=0)
    t_Y = (labels[:, None] == classes).astype(np.float64).mean(axis=0)
    covariance = np.mean(predictions == labels) - p_Y @ t_Y
    spread = (1 - p_Y @ p_Y) * (1 - t_Y @ t_Y)
    if np.max(p_Y) == 1 or np.max(t_Y) == 1:
        return 0.0
    return float(covariance / np.sqrt(spread))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Linear correlation, -1 to 1; 0 if a side is constant, where it is undefined."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - np.mean(x), y - np.mean(y)
    # each side is normed by itself, because the product of norms may underflow
    r = float((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)))
    return min(max(r, -1.0), 1.0)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Rank correlation with average ranks on ties, -1 to 1; 0 if a side is constant."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    return pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y))


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "mcc": mcc,
    "pearson": pearson,
    "spearman": spearman,
}


MAIN = ("mcc", "f1", "pearson", "accuracy")


def main(names: Iterable[str]) -> str:
    """The main score among `names`: MCC, F1 or Pearson if present, else accuracy."""
    names = set(names)
    return next((name for name in MAIN if name in names), "accuracy")


def table(
    names: Iterable[str], predictions: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Compute scores by name.

    Args:
      names: keys of SCORES.
      predictions: (N,) classes, or scores for pearson and spearman.
      labels: (N,), all present.

    Raises:
      UserError: an unknown score.
      ValueError: no rows, or unequal lengths.
    """
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(
            f"there are {len(predictions)} predictions for {len(labels)} labels; "
            "expected equal numbers of both, and at least one"
        )
    names = list(names)
    if unknown := [name for name in names if name not in SCORES]:
        raise UserError(
            f"score {unknown[0]!r} is unknown; expected one of {', '.join(SCORES)}"
        )
    return {name: SCORES[name](predictions, labels) for name in names}
