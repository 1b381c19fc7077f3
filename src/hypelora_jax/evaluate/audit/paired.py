"""Metrics of several predictors of the same rows, with intervals over tasks and rows.

A replica draws tasks with replacement, and then rows of each drawn task (Davison and
Hinkley 1997, section 3.8). All predictors use the same draws, so that difficulty which
they share cancels in a difference. Everything is float64.
"""

from typing import NamedTuple

import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.metrics import binned, likelihood

NAMES = ("accuracy", "nll", "ece", "brier")
BINS = 10
LEVEL = 0.95
Interval = dict[str, float]  # {"value", "low", "high"}


class Rows(NamedTuple):
    """What each row adds to the sums that metrics are made of; built by `rows`.

    `score_NK` has hit, nll and Brier score, and `gap_NM` confidence minus hit in the
    bin of the row.
    """

    score_NK: np.ndarray
    gap_NM: np.ndarray


def rows(probs_DNY: np.ndarray, label_N: np.ndarray) -> Rows:
    """Score the rows of a predictor; D draws of it, as of D nonsense texts, are mixed.

    Args:
      probs_DNY: (D, N, Y), or (N, Y) for one draw; rows sum to 1.
      label_N: classes.
    """
    p_DNY = np.asarray(probs_DNY, np.float64)
    p_DNY = p_DNY[None] if p_DNY.ndim == 2 else p_DNY
    scores, gaps = [], []
    for p_NY in p_DNY:
        conf_N, hit_N = arrays.top(p_NY, label_N)
        of_row = (likelihood.nll_of(p_NY, label_N), likelihood.brier_of(p_NY, label_N))
        scores.append(np.stack([hit_N, *of_row], axis=1))
        in_NM = binned.index(conf_N, BINS)[:, None] == np.arange(BINS)[None]
        gaps.append(in_NM * (conf_N - hit_N)[:, None])
    return Rows(np.mean(scores, axis=0), np.mean(gaps, axis=0))


def draws(task_N: np.ndarray, replicas: int = 1000, seed: int = 0) -> np.ndarray:
    """Count how often each replica draws each row, (R, N): tasks, then rows of them."""
    rng = np.random.default_rng(seed)
    at = [np.flatnonzero(task_N == k) for k in np.unique(task_N)]
    out = np.zeros((replicas, len(task_N)))
    for own in out:
        for k in rng.integers(len(at), size=len(at)):
            drawn = rng.integers(len(at[k]), size=len(at[k]))
            own[at[k]] += np.bincount(drawn, minlength=len(at[k]))
    return out


def _metrics(found: Rows, weight_RN: np.ndarray) -> dict[str, np.ndarray]:
    """Compute each metric (R,) under R sets of weights."""
    total_R = weight_RN.sum(axis=1)
    score_RK = weight_RN @ found.score_NK / total_R[:, None]
    gap_RM = weight_RN @ found.gap_NM / total_R[:, None]
    accuracy_R, nll_R, brier_R = score_RK.T
    ece_R = np.abs(gap_RM).sum(axis=1)
    return dict(zip(NAMES, (accuracy_R, nll_R, ece_R, brier_R), strict=True))


def metrics(found: Rows, weight_RN: np.ndarray) -> dict[str, Interval]:
    """Compute NAMES with their intervals; `weight_RN` comes from `draws`."""
    value, drawn = _value_and_draws(found, weight_RN)
    return {n: _interval(n, value[n], drawn[n], least=0) for n in NAMES}


def difference(a: Rows, b: Rows, weight_RN: np.ndarray) -> dict[str, Interval]:
    """Compute a - b of NAMES with paired intervals."""
    (value_a, drawn_a), (value_b, drawn_b) = (
        _value_and_draws(x, weight_RN) for x in (a, b)
    )
    return {
        n: _interval(n, value_a[n] - value_b[n], drawn_a[n] - drawn_b[n]) for n in NAMES
    }


def _value_and_draws(
    found: Rows, weight_RN: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    once = np.ones((1, weight_RN.shape[1]))
    value = {n: float(x[0]) for n, x in _metrics(found, once).items()}
    return value, _metrics(found, weight_RN)


def _interval(
    name: str, value: float, draw_R: np.ndarray, least: float = -np.inf
) -> Interval:
    if name == "ece":  # noise makes a replica's larger, as in calibration.bootstrap
        draw_R = draw_R - draw_R.mean() + value
    low, high = np.quantile(draw_R, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {
        "value": value,
        "low": float(max(min(low, value), least)),
        "high": float(max(high, value)),
    }
