"""Consistency test: would a perfectly calibrated model show an error this large?

Labels are drawn from the predicted confidences many times, and the error of each draw
is computed (Bröcker and Smith, 2007; Vaicenavicius et al., 2019, section 5).
The mean of these errors is the noise floor, the plug-in error that chance produces.
"""

from typing import NamedTuple

import numpy as np

from hypelora_jax.calibration.metrics import binned

CELLS = 4096  # with more examples than this, hits are drawn by cell
CHUNK = 128  # draws at a time


class Consistency(NamedTuple):
    """The errors that perfect calibration would show on these confidences."""

    noise_floor: float  # mean ECE of labels drawn from the confidences
    p: float  # share of draws (data included) with an ECE at least as large


def check(
    probs_NY: np.ndarray,
    label_N: np.ndarray,
    *,
    bins: int = 10,
    replicas: int = 999,
    seed: int = 0,
) -> Consistency:
    """Test perfect calibration of the top label by its ECE over equal-width bins.

    Args:
      probs_NY: probabilities.
      label_N: classes.
      bins: number of bins of the ECE.
      replicas: number of draws; p is at least 1 / (replicas + 1).
      seed: seed of the draws.
    """
    observed = float(binned.ece(probs_NY, label_N, bins=bins))
    conf_N = np.sort(np.max(probs_NY, axis=1).astype(np.float64))
    count_C, conf_C, bin_C = _cells(conf_N, np.asarray(binned.index(conf_N, bins)))
    start_M = np.flatnonzero(
        np.append(True, np.diff(bin_C) != 0)
    )  # bins without examples are left out
    wanted_M = np.add.reduceat(count_C * conf_C, start_M)
    chance = np.random.default_rng(seed)
    parts = []
    for begin in range(0, replicas, CHUNK):
        shape = (min(CHUNK, replicas - begin), len(count_C))
        hit_RM = np.add.reduceat(_hits(chance, shape, count_C, conf_C), start_M, axis=1)
        parts.append(np.sum(np.abs(wanted_M[None] - hit_RM), axis=1) / len(conf_N))
    errors = np.concatenate(parts)
    # errors that differ by rounding alone count as equal
    at_least = np.sum(errors >= observed * (1 - 1e-12))
    return Consistency(float(np.mean(errors)), float((1 + at_least) / (1 + replicas)))


def _cells(
    conf_N: np.ndarray, bin_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group sorted examples into cells: number, mean confidence and bin of each cell.

    With up to CELLS examples, each is a cell and the draws are exact. With more, the
    hits of a cell are drawn as one binomial. Its mean is exact. Its variance for each
    example, p (1 - p), is too large by the variance of the confidences within the cell.
    That is an absolute amount, below 1e-6 where the cell is 1e-3 wide.
    """
    n = len(conf_N)
    rank = np.arange(n) * min(CELLS, n) // n
    new = np.append(True, (np.diff(rank) != 0) | (np.diff(bin_N) != 0))
    start = np.flatnonzero(new)
    count = np.diff(np.append(start, n))
    mean = np.clip(np.add.reduceat(conf_N, start) / count, 0, 1)
    return count, mean, bin_N[start]


def _hits(
    chance: np.random.Generator,
    shape: tuple[int, int],
    count_C: np.ndarray,
    conf_C: np.ndarray,
) -> np.ndarray:
    """Draw the number of right answers of each cell, `shape[0]` times."""
    if np.all(count_C == 1):  # the same distribution, drawn ten times as fast
        return (chance.random(shape) < conf_C[None]).astype(np.int32)
    return chance.binomial(count_C, conf_C, shape)
