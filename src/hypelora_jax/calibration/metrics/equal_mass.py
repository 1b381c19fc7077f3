"""Calibration errors over groups of equal mass, from running sums in sorted order.

Sorting is done once (`order`); a weight says how many examples a row stands for, so
that a bootstrap replica is the same data with other weights and is not sorted again.
Two ways to cut n examples into groups: by rank, as the reference does (`n // bins` a
group, the remainder in the last one, equal confidences cut where they happen to lie),
and by value (quantiles, equal confidences kept together: no order of rows matters).
"""

from typing import NamedTuple

import jax
import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import binned
from hypelora_jax.calibration.metrics.binned import Bins


class Ordered(NamedTuple):
    """Entries by ascending confidence, equal ones in their first order."""

    conf: Array  # (E,)
    hit: Array  # (E,) 1 where the confidence was right
    row: Array  # (E,) the example an entry belongs to, which has the weight
    first: Array  # (E,) position of the first entry of the same confidence
    last: Array  # (E,) and of the last


class Curve(NamedTuple):
    """Running weighted sums (E + 1,): entry i is over the first i entries."""

    count: Array
    gap: Array  # confidence minus hit
    hit: Array


def order(
    conf_E: Array, hit_E: Array, row_E: Array, by_E: Array | None = None
) -> Ordered:
    """Entries sorted by confidence; `by_E` is the stable sort, if it is known."""
    xp = arrays.namespace(conf_E)
    by_E = xp.argsort(conf_E, stable=True) if by_E is None else by_E
    conf_E = conf_E[by_E]
    at_E, edge = xp.arange(len(conf_E)), xp.ones(1, bool)
    new = conf_E[1:] != conf_E[:-1]
    first_E = _running_max(xp.where(xp.concatenate([edge, new]), at_E, 0))
    # the same seen from the other end
    ends_E = xp.concatenate([new, edge])[::-1]
    last_E = len(conf_E) - 1 - _running_max(xp.where(ends_E, at_E, 0))[::-1]
    return Ordered(conf_E, hit_E[by_E], row_E[by_E], first_E, last_E)


def of_top(probs_NY: Array, label_N: Array) -> Ordered:
    """Top labels by confidence."""
    conf_N, hit_N = arrays.top(probs_NY, label_N)
    return order(conf_N, hit_N, arrays.namespace(conf_N).arange(len(conf_N)))


def of_class(probs_NY: Array, label_N: Array, y: int) -> Ordered:
    """Probabilities of class y."""
    conf_N = probs_NY[:, y]
    hit_N = (label_N == y).astype(conf_N.dtype)
    return order(conf_N, hit_N, arrays.namespace(conf_N).arange(len(conf_N)))


def curve(held: Ordered, weight_N: Array) -> Curve:
    """Running sums of the entries under the weights of their examples."""
    xp = arrays.namespace(weight_N)
    weight_E = weight_N[held.row]
    zero = xp.zeros(1, weight_E.dtype)
    parts = weight_E, (held.conf - held.hit) * weight_E, held.hit * weight_E
    return Curve(*(xp.concatenate([zero, xp.cumsum(x)]) for x in parts))


def by_value(held: Ordered, running: Curve, bins: int) -> Bins:
    """Groups of equal mass, equal confidences kept together.

    Group k ends with the confidence of rank ceil(k n / bins), all its copies included,
    so ties make groups unequal and may leave some empty.
    """
    xp = arrays.namespace(running.count)
    # whole numbers on both sides: no rounding decides where a group ends
    wanted = xp.arange(1, bins) * running.count[-1]
    at = xp.searchsorted(running.count[1:] * bins, wanted, side="left")
    inner = held.last[xp.minimum(at, len(held.conf) - 1)] + 1
    ends = xp.asarray([len(held.conf)], inner.dtype)
    bound_M = xp.concatenate([xp.zeros_like(ends), inner, ends])
    return Bins(*(x[bound_M[1:]] - x[bound_M[:-1]] for x in running))


def by_rank(running: Curve, bins: int, start: Array | int = 0) -> Bins:
    """Groups of n // bins of the entries from `start` on, the rest in the last one.

    With fewer entries than groups all fall into the last.
    """
    xp = arrays.namespace(running.count)
    before = running.count[start]
    size = xp.floor((running.count[-1] - before) / bins)
    rank = before + xp.arange(bins).astype(before.dtype) * size
    rank_M = xp.concatenate([rank, running.count[-1:]])
    return Bins(*(x[1:] - x[:-1] for x in at_rank(running, rank_M)))


def at_rank(running: Curve, rank_M: Array) -> Curve:
    """Running sums up to ranks (weights from the lowest on); rows are cut in parts."""
    xp = arrays.namespace(running.count)
    at = xp.searchsorted(running.count[1:], rank_M, side="left")
    at = xp.minimum(at, len(running.count) - 2)
    weight = running.count[at + 1] - running.count[at]
    part = arrays.share(rank_M - running.count[at], weight)
    return Curve(*(x[at] + part * (x[at + 1] - x[at]) for x in running))


def debiased(held: Bins) -> Array:
    """Root of the debiased mean squared gap, at least 0.

    Kumar et al., 2019, section 5: from each squared gap the variance of the bin's rate
    of hits is subtracted, rate (1 - rate) / (count - 1). Bins of one example add
    nothing.
    """
    xp = arrays.namespace(held.gap)
    rate = arrays.share(held.hit, held.count)
    noise = arrays.share(rate * (1 - rate), held.count - 1)
    square = xp.square(arrays.share(held.gap, held.count)) - noise
    square = xp.where(held.count > 1, square, xp.zeros_like(square))
    mean = arrays.share(xp.sum(held.count * square), xp.sum(held.count))
    return xp.sqrt(xp.maximum(mean, 0))


def ece_mass(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Expected calibration error of the top label over bins of equal mass, 0 to 1.

    As `ece`, but with bounds at the quantiles of the confidence (Nguyen and O'Connor,
    2015, section 3.2); equal confidences stay together (`by_value`).
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

    The reference's: n // bins examples a group in order of confidence, the remainder in
    the last group; with fewer examples than bins all fall into one (METHOD D). The
    order of examples matters only between equal confidences.
    """
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    running = curve(of_top(probs_NY, label_N), weight_N)
    return binned.l1(by_rank(running, bins))


def ace_per_class(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Adaptive calibration error over classes, 0 to 1; ACE of Nixon et al., 2019.

    Mean over classes of the equal-mass error of p(class). Groups count by their share
    of examples, which is the paper's plain mean over groups wherever they are equal.
    """
    xp, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    classes = range(probs_NY.shape[1])
    held = [of_class(probs_NY, label_N, y) for y in classes]
    errors = [binned.l1(by_value(h, curve(h, weight_N), bins)) for h in held]
    return xp.mean(xp.stack(errors))


def thresholded_ace(
    probs_NY: Array,
    label_N: Array,
    eps: float,
    bins: int = 10,
    pairing: str = "correct",
    weight_N: Array | None = None,
) -> Array:
    """Adaptive calibration error over all probabilities of at least `eps`, 0 to 1.

    Args:
      probs_NY: probabilities.
      label_N: classes.
      eps: smallest probability that counts, above 0; with none left the error is 0.
      bins: groups of equal mass, as in `ace`, over all classes together.
      pairing: "correct", or "reference": entry j of the row-major probabilities is
        judged by example j % N and class j // N, as the reference does by mistake
        (METHOD A.9, 1); that number depends on the order of the examples.
      weight_N: 0 for padding rows.

    Raises:
      ValueError: another pairing.
    """
    if pairing not in ("correct", "reference"):
        raise ValueError(f"pairing is {pairing!r}; wanted correct or reference")
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    held, weight_N = thresholded(*rows)[pairing]
    return above(held, curve(held, weight_N), eps, bins)


def thresholded(
    probs_NY: Array, label_N: Array, weight_N: Array
) -> dict[str, tuple[Ordered, Array]]:
    """All probabilities in order as each pairing judges them, and the rows' weights.

    They are sorted once for both: the pairings differ in their hits alone.
    """
    xp = arrays.namespace(probs_NY)
    by_N = xp.argsort(weight_N <= 0, stable=True)  # padding last, so that j % n works
    probs_NY, label_N, weight_N = probs_NY[by_N], label_N[by_N], weight_N[by_N]
    n, num_classes = probs_NY.shape
    some = xp.maximum(xp.sum(weight_N > 0), 1)
    j_NY = xp.arange(n * num_classes).reshape(n, num_classes)
    hits = {
        "correct": arrays.onehot(label_N, num_classes),
        "reference": label_N[j_NY % some] == j_NY // some,
    }
    flat_E = probs_NY.reshape(-1)
    sort_E = xp.argsort(flat_E, stable=True)
    row_E = xp.repeat(xp.arange(n), num_classes)

    def judged(hit_NY: Array) -> Ordered:
        return order(flat_E, hit_NY.reshape(-1).astype(flat_E.dtype), row_E, sort_E)

    return {name: (judged(hit_NY), weight_N) for name, hit_NY in hits.items()}


def above(held: Ordered, running: Curve, eps: float, bins: int) -> Array:
    """Error over groups of equal mass of the entries of at least `eps`."""
    xp = arrays.namespace(held.conf)
    start = xp.searchsorted(held.conf, xp.asarray(eps, held.conf.dtype), side="left")
    return binned.l1(by_rank(running, bins, start))


def _mass_bins(
    probs_NY: Array, label_N: Array, weight_N: Array | None, bins: int
) -> Bins:
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    held = of_top(probs_NY, label_N)
    return by_value(held, curve(held, weight_N), bins)


def _running_max(x: Array) -> Array:
    if arrays.namespace(x) is np:
        return np.maximum.accumulate(x)
    return jax.lax.cummax(x)
