"""Consistency test: would a perfectly calibrated model show an error this large?

Labels are drawn anew from the predicted confidences, many times, and the error is
computed of each draw (Bröcker and Smith, 2007; Vaicenavicius et al., 2019, section 5).
Their mean is the noise floor: what the plug-in error shows of nothing but chance.
"""

from typing import NamedTuple

import numpy as np

from hypelora_jax.calibration import arrays, binned

CELLS = 4096  # sums of more examples than this are drawn as binomials of cells


class Consistency(NamedTuple):
    """What perfect calibration would look like on these confidences."""

    noise_floor: float  # mean ECE of labels drawn from the confidences
    p: float  # share of draws, this one included, with an ECE at least as large


def check(
    probs_NY: np.ndarray,
    label_N: np.ndarray,
    *,
    bins: int = 10,
    replicas: int = 999,
    seed: int = 0,
) -> Consistency:
    """Test of perfect calibration of the top label by its ECE over equal-width bins.

    Args:
      probs_NY: probabilities.
      label_N: classes.
      bins: of the ECE.
      replicas: draws; p is at least 1 / (replicas + 1).
      seed: of the draws.
    """
    _, probs_NY, label_N, _ = arrays.clean(np.asarray(probs_NY), label_N, None)
    conf_N = np.sort(arrays.top(probs_NY, label_N)[0].astype(np.float64))
    observed = float(binned.ece(probs_NY, label_N, bins=bins))
    count_C, conf_C, bin_C = _cells(conf_N, binned.index(conf_N, bins))
    chance = np.random.default_rng(seed)
    gap_M = np.bincount(bin_C, count_C * conf_C, minlength=bins)
    edges = np.searchsorted(bin_C, np.arange(bins))
    errors = np.empty(replicas)
    for i in range(replicas):
        hits = np.concatenate([[0], np.cumsum(chance.binomial(count_C, conf_C))])
        hit_M = np.diff(np.append(hits[edges], hits[-1]))
        errors[i] = np.sum(np.abs(gap_M - hit_M)) / len(conf_N)
    # an observed error equal to a drawn one but for rounding counts as equal
    at_least = np.sum(errors >= observed * (1 - 1e-12))
    return Consistency(float(np.mean(errors)), float((1 + at_least) / (1 + replicas)))


def _cells(
    conf_N: np.ndarray, bin_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean confidence and bin of each cell of neighbours in sorted order.

    Up to CELLS examples each is its own cell and the draws are exact. Beyond, the hits
    of a cell are drawn as one binomial, which has their mean, and their variance but
    for that of the confidences within the cell: no more than 1e-6 of it where cells are
    1e-3 wide.
    """
    n = len(conf_N)
    rank = np.arange(n) * min(CELLS, n) // n
    new = np.append(True, (np.diff(rank) != 0) | (np.diff(bin_N) != 0))
    start = np.flatnonzero(new)
    count = np.diff(np.append(start, n))
    mean = np.clip(np.add.reduceat(conf_N, start) / count, 0, 1)
    return count, mean, bin_N[start]
