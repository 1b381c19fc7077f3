"""Calibration errors over groups of equal mass, from running sums over a ranking.

There are two ways to cut n examples into groups. By rank, as the reference does, a
group has `n // bins` examples, the last group also has the remainder, and equal
confidences may be cut anywhere. By value, the cuts are quantiles and equal confidences
stay together, so the order of the rows does not matter.
"""

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import binned, ranking
from hypelora_jax.calibration.metrics.binned import Bins
from hypelora_jax.calibration.metrics.ranking import Curve, Ranking


def by_value(entries: Ranking, running: Curve, bins: int) -> Bins:
    """Cut into groups of equal mass that keep equal confidences together.

    Group k ends with the confidence of rank ceil(k n / bins) and includes all its
    copies, so ties make groups unequal and may leave some empty.
    """
    xp = arrays.namespace(running.weight)
    # both sides are whole numbers, so rounding cannot move the end of a group
    wanted = xp.arange(1, bins) * running.weight[-1]
    at = xp.searchsorted(running.weight[1:] * bins, wanted, side="left")
    inner = entries.last[xp.minimum(at, len(entries.conf) - 1)] + 1
    ends = xp.asarray([len(entries.conf)], inner.dtype)
    bound_M = xp.concatenate([xp.zeros_like(ends), inner, ends])
    return Bins(*(x[bound_M[1:]] - x[bound_M[:-1]] for x in running))


def by_rank(running: Curve, bins: int, start: Array | int = 0) -> Bins:
    """Cut the entries from `start` on into groups of n // bins; the last has the rest.

    With fewer entries than groups, all entries are in the last group.
    """
    xp = arrays.namespace(running.weight)
    before = running.weight[start]
    size = xp.floor((running.weight[-1] - before) / bins)
    rank = before + xp.arange(bins).astype(before.dtype) * size
    rank_M = xp.concatenate([rank, running.weight[-1:]])
    return Bins(*(x[1:] - x[:-1] for x in ranking.at_rank(running, rank_M)))


def debiased(by_bin: Bins) -> Array:
    """Root of the debiased mean squared gap, at least 0.

    Kumar et al., 2019, section 5: each squared gap is reduced by the variance of the
    bin's rate of hits, rate (1 - rate) / (count - 1). Bins of one example add nothing.
    """
    xp = arrays.namespace(by_bin.gap)
    rate = arrays.share(by_bin.hit, by_bin.weight)
    noise = arrays.share(rate * (1 - rate), by_bin.weight - 1)
    square = xp.square(arrays.share(by_bin.gap, by_bin.weight)) - noise
    square = xp.where(by_bin.weight > 1, square, xp.zeros_like(square))
    mean = arrays.share(xp.sum(by_bin.weight * square), xp.sum(by_bin.weight))
    return xp.sqrt(xp.maximum(mean, 0))


def of_ranking(entries: Ranking, weight_N: Array, bins: int) -> Array:
    """Calibration error of a ranking over groups of equal mass, by value."""
    return binned.l1(by_value(entries, ranking.curve(entries, weight_N), bins))


def ece_mass(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Expected calibration error of the top label over bins of equal mass, 0 to 1.

    It is `ece` with bounds at the quantiles of the confidence (Nguyen and O'Connor,
    2015, section 3.2). Equal confidences stay together (`by_value`).
    """
    return binned.l1(_mass_bins(probs_NY, label_N, weight_N, bins))


def ece_mass_l2(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Root mean square calibration error over bins of equal mass, 0 to 1."""
    return binned.l2(_mass_bins(probs_NY, label_N, weight_N, bins))


def ece_mass_max(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Largest gap of the bins of equal mass, 0 to 1."""
    return binned.largest(_mass_bins(probs_NY, label_N, weight_N, bins))


def ece_debiased(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Debiased root mean square calibration error over bins of equal mass, 0 to 1.

    Kumar et al., 2019 (see `debiased`); compare it with `ece_mass_l2`, not with `ece`.
    """
    return debiased(_mass_bins(probs_NY, label_N, weight_N, bins))


def ace(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Adaptive calibration error of the top label: groups of equal mass, 0 to 1.

    As in the reference (METHOD D), each group has n // bins examples in order of
    confidence, and the last group also has the remainder; with fewer examples than bins
    there is one group. The order of examples matters only among equal confidences.
    """
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    running = ranking.curve(ranking.of_top(probs_NY, label_N), weight_N)
    return binned.l1(by_rank(running, bins))


def ace_per_class(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Adaptive calibration error over classes, 0 to 1; ACE of Nixon et al., 2019.

    It is the mean over classes of the equal-mass error of p(class). Groups are weighted
    by their share of examples, which is the paper's plain mean if groups are equal.
    """
    xp, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    classes = range(probs_NY.shape[1])
    rankings = [ranking.of_class(probs_NY, label_N, y) for y in classes]
    errors = [of_ranking(entries, weight_N, bins) for entries in rankings]
    return xp.mean(xp.stack(errors))


def _mass_bins(
    probs_NY: Array, label_N: Array, weight_N: Array | None, bins: int
) -> Bins:
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    entries = ranking.of_top(probs_NY, label_N)
    return by_value(entries, ranking.curve(entries, weight_N), bins)
