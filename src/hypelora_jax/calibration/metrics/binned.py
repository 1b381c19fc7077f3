"""Calibration errors over bins of equal width, from sums over each bin.

Bins are (lo, hi] with edges linspace(0, 1, bins + 1), and the first bin is closed.
"""

from typing import NamedTuple

import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array

MIN_COUNT = 10  # `mce_min_10` leaves out bins of fewer examples


class Bins(NamedTuple):
    """Weighted sums over the examples of each bin, (M,) or with leading axes."""

    weight: Array
    gap: Array  # confidence minus hit
    hit: Array  # 1 where the confidence was right


def index(conf: Array, bins: int) -> Array:
    """Index of the bin (lo, hi] of each confidence."""
    xp = arrays.namespace(conf)
    edges = np.linspace(0.0, 1.0, bins + 1)
    edges = edges if xp is np else xp.asarray(edges, conf.dtype)
    return xp.clip(xp.searchsorted(edges, conf, side="left") - 1, 0, bins - 1)


def sums(group: Array, conf: Array, hit: Array, weight: Array, num_groups: int) -> Bins:
    """Sums over each of `num_groups` groups; all arrays have one axis."""
    parts = weight, (conf - hit) * weight, hit * weight
    added = (arrays.grouped(group, x, num_groups).astype(x.dtype) for x in parts)
    return Bins(*added)


def of_top(probs_NY: Array, label_N: Array, weight_N: Array, bins: int) -> Bins:
    """Bins (M,) of the top label's confidence."""
    conf_N, hit_N = arrays.top(probs_NY, label_N)
    return sums(index(conf_N, bins), conf_N, hit_N, weight_N, bins)


def of_classes(probs_NY: Array, label_N: Array, weight_N: Array, bins: int) -> Bins:
    """Bins (Y, M) of each class's probability, however small it is."""
    xp, num_classes = arrays.namespace(probs_NY), probs_NY.shape[1]
    hit_NY = arrays.onehot(label_N, num_classes).astype(probs_NY.dtype)
    weight_NY = xp.broadcast_to(weight_N[:, None], hit_NY.shape)
    # all classes in one sum: bin m of class c is group c * bins + m
    group_NY = index(probs_NY, bins) + bins * xp.arange(num_classes)[None, :]
    group_E, conf_E = group_NY.reshape(-1), probs_NY.reshape(-1)
    hit_E, weight_E = hit_NY.reshape(-1), weight_NY.reshape(-1)
    flat = sums(group_E, conf_E, hit_E, weight_E, num_classes * bins)
    return Bins(*(x.reshape(-1, bins) for x in flat))


def l1(by_bin: Bins) -> Array:
    """Sum over all bins of |gap| times the bin's share of the weight."""
    xp = arrays.namespace(by_bin.gap)
    return arrays.share(xp.sum(xp.abs(by_bin.gap)), xp.sum(by_bin.weight))


def l2(by_bin: Bins) -> Array:
    """Root mean square over examples of the mean gap of their bin."""
    xp = arrays.namespace(by_bin.gap)
    square = arrays.share(xp.square(by_bin.gap), by_bin.weight)
    return xp.sqrt(arrays.share(xp.sum(square), xp.sum(by_bin.weight)))


def largest(by_bin: Bins, min_count: int = 1) -> Array:
    """Largest gap of the bins with at least `min_count` examples, or 0 if none has."""
    xp = arrays.namespace(by_bin.gap)
    gap = arrays.share(xp.abs(by_bin.gap), by_bin.weight)
    return xp.max(xp.where(by_bin.weight >= min_count, gap, xp.zeros_like(gap)))


def decomposition(by_bin: Bins) -> tuple[Array, Array, Array]:
    """Reliability, resolution and uncertainty of the Brier score, from (Y, M) bins.

    Each is a sum over classes. Reliability is the mean squared gap between a bin's mean
    probability and its rate of hits. Resolution is the mean squared distance of that
    rate from the class's overall rate. Uncertainty is the variance of the class. This
    is Murphy, 1973, equation 8, for each class, with bins in place of equal forecasts.
    """
    xp = arrays.namespace(by_bin.gap)
    n = xp.max(xp.sum(by_bin.weight, axis=1))
    base_Y1 = arrays.share(xp.sum(by_bin.hit, axis=1, keepdims=True), n)
    rate_YM = arrays.share(by_bin.hit, by_bin.weight)
    reliability = xp.sum(arrays.share(xp.square(by_bin.gap), by_bin.weight))
    resolution = xp.sum(by_bin.weight * xp.square(rate_YM - base_Y1))
    uncertainty = xp.sum(base_Y1 * (1 - base_Y1))
    return arrays.share(reliability, n), arrays.share(resolution, n), uncertainty


def ece(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Expected calibration error of the top label over equal-width bins (METHOD D).

    It is the sum over bins of |mean confidence - accuracy| times the bin's share of
    examples (Guo et al., 2017, equation 3), 0 to 1.
    """
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    return l1(of_top(*rows, bins))


def ece_l2(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Root mean square calibration error of the top label, 0 to 1.

    As `ece` with squared gaps and a root: Kumar et al., 2019, definition 2.1, p = 2.
    """
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    return l2(of_top(*rows, bins))


def mce(
    probs_NY: Array,
    label_N: Array,
    weight_N: Array | None = None,
    bins: int = 10,
    min_count: int = 1,
) -> Array:
    """Maximum calibration error: the largest gap of a bin, 0 to 1.

    Guo et al., 2017, equation 5. Bins of fewer than `min_count` examples are left out;
    with 1, a bin of one example counts like any other, so the number is noisy.
    """
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    return largest(of_top(*rows, bins), min_count)


def classwise_ece(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Mean over classes of the equal-width calibration error of p(class), 0 to 1.

    Every probability counts, however small; Kull et al., 2019.
    """
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    return l1(of_classes(*rows, bins))


def reliability(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> tuple[Array, Array, Array]:
    """Mean confidence, accuracy and number of examples of each bin of `ece`.

    The result is three arrays (M,); the first two are 0 in a bin without examples.
    """
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    return means(of_top(*rows, bins))


def means(by_bin: Bins) -> tuple[Array, Array, Array]:
    """Mean confidence, accuracy and number of examples of each bin."""
    hit_M = arrays.share(by_bin.hit, by_bin.weight)
    return arrays.share(by_bin.gap + by_bin.hit, by_bin.weight), hit_M, by_bin.weight
