"""Bootstrap intervals of every metric, and of differences between two runs.

A replica draws N examples with replacement. It uses the same data and weights each
example by how often it was drawn. Rows are sorted once, on the host. On the device a
replica is a matrix product (sums), a running sum (rankings) or a transform (smooth).
Replicas are float32; the reported value is the float64 number of `metrics.compute_all`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration import replicas as replicas_lib
from hypelora_jax.calibration.metrics import thresholded
from hypelora_jax.errors import UserError

# These errors are norms of noisy gaps, so sampling noise makes them larger. A replica
# adds that noise a second time, so the replicas are shifted until their mean is the
# value. Intervals without the shift, or reflected at the value, cover the truth less
# often (docs/calibration.md has the numbers).
RECENTRED = frozenset(
    (
        *("ece", "ece_l2", "mce", "mce_min_10", "classwise_ece", "ace"),
        *("ece_mass", "ece_mass_l2", "ece_mass_max", "ece_debiased"),
        *("ace_per_class", "smooth_ece", "brier_reliability", "brier_resolution"),
        *(thresholded.name(eps) for eps in thresholded.THRESHOLDS),
    )
)


def intervals(
    probs: np.ndarray,
    labels: np.ndarray,
    *,
    replicas: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    bins: int = 10,
    soft: np.ndarray | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Compute metrics with bootstrap intervals: name -> {"value", "low", "high"}.

    These are percentile intervals (Efron and Tibshirani, 1993, section 13.3). Replicas
    of the errors in RECENTRED are recentred. The value always lies within its interval.

    Args:
      probs: (N, Y), rows sum to 1.
      labels: (N,) classes.
      replicas: number of replicas, at least 2. The ends of a 95 % interval are off by
        about a twentieth of its length with 1,000 replicas, by a tenth with 200.
      level: wanted share of intervals that contain the truth, between 0 and 1.
      seed: seed of the draws. The same seed and N draw the same examples.
      bins: number of bins of the calibration errors.
      soft: (N, Y) shares of raters.
      names: metrics to compute; None for all that have an interval.

    Raises:
      UserError: a name is unknown, or an argument is out of range.
    """
    _check(replicas, level)
    wanted = _names(names, soft is not None, len(labels))
    value, draw = _run(probs, labels, soft, wanted, replicas, seed, bins)
    return {name: interval(name, value[name], draw[name], level) for name in wanted}


def interval(
    name: str, value: float, draw_R: np.ndarray, level: float = 0.95
) -> dict[str, float]:
    """Compute {"value", "low", "high"} of a metric from its value and its replicas."""
    low, high = np.quantile(_centred(name, value, draw_R), _tails(level))
    if name in RECENTRED:  # clip to the range of the metric
        top = 2.0 if name.startswith("brier") else 1.0
        low, high = np.clip([low, high], 0, top)
    return {
        "value": value,
        "low": float(min(low, value)),
        "high": float(max(high, value)),
    }


def paired(
    probs_a: np.ndarray,
    probs_b: np.ndarray,
    labels: np.ndarray,
    *,
    replicas: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    bins: int = 10,
    soft: np.ndarray | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Differences a - b on the same examples: name -> {"value", "low", "high", "p"}.

    Both runs use the same draws, so difficulty that they share cancels. The two-sided p
    is twice the smaller share of replicas on either side of 0. The observed difference
    counts as one replica, so p is at least 2 / (replicas + 1).

    `probs_a` and `probs_b` are (N, Y) of the same rows; see `intervals` for the rest.

    Raises:
      UserError: as in `intervals`, or the runs differ in shape.
    """
    _check(replicas, level)
    if np.shape(probs_a) != np.shape(probs_b):
        raise UserError(
            f"the runs have probabilities of shapes {list(np.shape(probs_a))} and "
            f"{list(np.shape(probs_b))}; expected two runs on the same examples"
        )
    wanted = _names(names, soft is not None, len(labels))
    rest = labels, soft, wanted, replicas, seed, bins
    (value_a, draw_a), (value_b, draw_b) = _run(probs_a, *rest), _run(probs_b, *rest)
    out = {}
    for name in wanted:
        value = value_a[name] - value_b[name]
        draw = _centred(name, value, draw_a[name] - draw_b[name])
        low, high = np.quantile(draw, _tails(level))
        tail = 1 + min(int(np.sum(draw <= 0)), int(np.sum(draw >= 0)))
        out[name] = {
            "value": value,
            "low": float(min(low, value)),
            "high": float(max(high, value)),
            "p": min(1.0, 2 * tail / (1 + replicas)),
        }
    return out


def _run(
    probs: np.ndarray,
    labels: np.ndarray,
    soft: np.ndarray | None,
    names: tuple[str, ...],
    number: int,
    seed: int,
    bins: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compute values and replicas (R,) of metrics by name."""
    value = metrics.compute_all(probs, labels, bins, soft=soft)
    drawn = replicas_lib.draw(probs, labels, soft, names, number, seed, bins)
    return value, drawn


def _names(names: Iterable[str] | None, soft: bool, n: int) -> tuple[str, ...]:
    known = replicas_lib.names(soft, n)
    if names is None:
        return known
    names = tuple(names)
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"metric {unknown[0]!r} has no interval; expected one of {', '.join(known)}"
        )
    return names


def _check(number: int, level: float) -> None:
    if number < 2:
        raise UserError(f"replicas is {number}; expected at least 2, such as 1000")
    if not 0 < level < 1:
        raise UserError(
            f"level is {level}; expected a share between 0 and 1, such as 0.95"
        )


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _centred(name: str, value: float, draw_R: np.ndarray) -> np.ndarray:
    return draw_R - np.mean(draw_R) + value if name in RECENTRED else draw_R
