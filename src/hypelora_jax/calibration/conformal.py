"""Split conformal prediction: sets of classes that contain the label at a wanted rate.

A score measures how badly a class fits an example. The threshold is the score that the
wanted share of held-out examples does not exceed, corrected for their finite number. If
the data are exchangeable, the set of a new example contains its label with at least the
wanted probability, on average over splits and for any model (Vovk et al., 2005).

thr   1 - p(class): the smallest sets on average (Sadinle, Lei and Wasserman, 2019).
aps   the mass of the classes that are at least as probable: larger sets for harder
      examples (Romano, Sesia and Candes, 2020).
raps  aps plus a penalty on classes after the first few (Angelopoulos et al., 2021).

Everything is computed in float64 on the host. aps and raps draw one uniform number for
each example; without it their coverage would be too high.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy

from hypelora_jax.errors import UserError

# These values suit few classes. The paper's setting for ImageNet (5 free ranks, 0.01
# for each further rank) would make raps the same as aps for up to 5 classes.
RAPS_FREE, RAPS_PENALTY = 1, 0.1


class Threshold(NamedTuple):
    """A set contains each class whose score is at most the threshold of the class."""

    sets: str  # a key of SETS
    coverage: float  # wanted coverage, above 0 and below 1
    score_Y: np.ndarray  # equal for all classes unless fitted by class


class Kind(NamedTuple):
    """A kind of set: its score, and whether `summary` also fits thresholds by class.

    `score(probs_NY, u_N) -> (N, Y)` with one uniform number for each example.
    """

    score: Callable[..., np.ndarray]
    by_class: bool = False


def thr(probs_NY: np.ndarray, u_N: np.ndarray) -> np.ndarray:
    """1 - p of each class (N, Y); the uniform numbers are not used."""
    del u_N
    return 1 - probs_NY


def aps(probs_NY: np.ndarray, u_N: np.ndarray) -> np.ndarray:
    """Mass of the classes ranked before each class, plus u times its mass (N, Y)."""
    _, before_NY = _ranked(probs_NY)
    return before_NY + u_N[:, None] * probs_NY


def raps(
    probs_NY: np.ndarray,
    u_N: np.ndarray,
    free: int = RAPS_FREE,
    penalty: float = RAPS_PENALTY,
) -> np.ndarray:
    """`aps` plus `penalty` for each rank above `free` (N, Y); ranks begin at 1."""
    rank_NY, before_NY = _ranked(probs_NY)
    mass_NY = before_NY + u_N[:, None] * probs_NY
    return mass_NY + penalty * np.maximum(rank_NY - free, 0)


SETS = {"thr": Kind(thr, by_class=True), "aps": Kind(aps), "raps": Kind(raps)}


def _ranked(probs_NY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank classes by falling probability, from 1, and sum the mass before each."""
    order_NY = np.argsort(-probs_NY, axis=1, kind="stable")
    sorted_NY = np.take_along_axis(probs_NY, order_NY, axis=1)
    before_NY = np.cumsum(sorted_NY, axis=1) - sorted_NY
    place_NY = np.argsort(order_NY, axis=1, kind="stable")
    return place_NY + 1, np.take_along_axis(before_NY, place_NY, axis=1)


def uniforms(n: int, seed: int) -> np.ndarray:
    """Uniform numbers (N,) in [0, 1) for `aps` and `raps`, fixed by the seed."""
    return np.random.default_rng(seed).random(n)


def uniform_of(text: str) -> float:
    """Hash a text to a number in [0, 1), so that equal texts get equal sets."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def fit(
    probs_NY: np.ndarray,
    label_N: np.ndarray,
    coverage: float,
    sets: str = "thr",
    by_class: bool = False,
    u_N: np.ndarray | None = None,
) -> Threshold:
    """Fit a threshold on held-out examples.

    The threshold is the ceil((n + 1) coverage)-th smallest of their n scores. If that
    rank is above n, the threshold is infinite and every set contains every class.

    Args:
      probs_NY: probabilities of examples that were not used in training. Strictly, the
        calibrator must not have used them either (docs/calibrators.md has the cost).
      label_N: classes.
      coverage: wanted coverage, above 0 and below 1.
      sets: thr, aps or raps.
      by_class: fit a threshold for each class from its own examples, so that the
        coverage is reached within every class.
      u_N: uniform numbers; None draws them with seed 0.

    Raises:
      UserError: `coverage` or `sets` is not allowed, or there are no examples.
    """
    if not 0 < coverage < 1:
        raise UserError(f"coverage is {coverage}; expected above 0 and below 1")
    if sets not in SETS:
        raise UserError(f"sets is {sets!r}; expected one of {', '.join(SETS)}")
    p_NY, y_N = np.asarray(probs_NY, np.float64), np.asarray(label_N)
    if not len(y_N):
        raise UserError(
            "there are no labelled examples to calibrate sets on; expected at least one"
        )
    u_N = uniforms(len(y_N), 0) if u_N is None else u_N
    own_N = SETS[sets].score(p_NY, u_N)[np.arange(len(y_N)), y_N]
    classes = range(p_NY.shape[1])
    if by_class:
        score_Y = np.array([_quantile(own_N[y_N == k], coverage) for k in classes])
    else:
        score_Y = np.full(p_NY.shape[1], _quantile(own_N, coverage))
    return Threshold(sets, coverage, score_Y)


def _quantile(score_N: np.ndarray, coverage: float) -> float:
    # without 1e-9, rounding could move an integer (n + 1) * coverage to the next rank
    rank = math.ceil((len(score_N) + 1) * coverage - 1e-9)
    if rank > len(score_N):
        return math.inf
    return float(np.partition(score_N, rank - 1)[rank - 1])


def members(
    threshold: Threshold, probs_NY: np.ndarray, u_N: np.ndarray | None = None
) -> np.ndarray:
    """Find the classes of each set, bool (N, Y); a set may be empty.

    `u_N` are uniform numbers for aps and raps; None draws them with seed 1.
    """
    p_NY = np.asarray(probs_NY, np.float64)
    u_N = uniforms(len(p_NY), 1) if u_N is None else u_N
    return SETS[threshold.sets].score(p_NY, u_N) <= threshold.score_Y[None, :]


def judge(member_NY: np.ndarray, label_N: np.ndarray) -> dict[str, Any]:
    """Measure coverage and size of sets on labelled examples.

    Returns:
      coverage with its exact binomial 95 % interval (Clopper and Pearson), size (mean
      number of classes), empty and single (shares of sets with no class and with one),
      worst_class (lowest coverage of a class).
    """
    hit_N = member_NY[np.arange(len(label_N)), label_N]
    test = scipy.stats.binomtest(int(hit_N.sum()), len(hit_N))
    interval = test.proportion_ci(confidence_level=0.95)
    size_N = member_NY.sum(axis=1)
    by_class = [hit_N[label_N == k].mean() for k in np.unique(label_N)]
    return {
        "coverage": {
            "value": float(hit_N.mean()),
            "low": float(interval.low),
            "high": float(interval.high),
        },
        "size": float(size_N.mean()),
        "empty": float((size_N == 0).mean()),
        "single": float((size_N == 1).mean()),
        "worst_class": float(min(by_class)),
    }


def summary(
    probs_cal: np.ndarray,
    labels_cal: np.ndarray,
    probs: np.ndarray,
    labels: np.ndarray,
    coverage: float = 0.9,
) -> dict[str, Any]:
    """Fit every kind of set on one split and measure coverage and size on another.

    Args:
      probs_cal: (M, Y), from the same model and calibrator as `probs`.
      labels_cal: (M,) classes.
      probs: (N, Y).
      labels: (N,) classes.
      coverage: wanted coverage.

    Returns:
      wanted, n_calibration, n, and the result of `judge` for each of SETS, also for
      sets by class if the kind has `by_class`.
    """
    out: dict[str, Any] = {"wanted": coverage, "n_calibration": len(labels_cal)}
    out["n"] = len(labels)
    for name, kind in SETS.items():
        for by_class in (False, True) if kind.by_class else (False,):
            threshold = fit(probs_cal, labels_cal, coverage, name, by_class)
            key = f"{name}_by_class" if by_class else name
            out[key] = judge(members(threshold, probs), np.asarray(labels))
    return out
