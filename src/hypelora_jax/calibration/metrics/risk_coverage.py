"""Selective prediction: is the model wrong where it is unsure?

The most confident examples are answered first, the rest refused. Among equal
confidences every order is as good as another: numbers are the mean over all orders.
"""

from typing import NamedTuple

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import equal_mass
from hypelora_jax.calibration.metrics.equal_mass import Curve, Ordered

COVERAGES = (0.5, 0.8, 0.9)


class Steps(NamedTuple):
    """One step for each confidence that occurs, in ascending order; else zeros (E,)."""

    count: Array  # examples of this confidence
    errors: Array  # of these, the wrong ones
    count_above: Array  # examples of higher confidence
    errors_above: Array
    errors_below: Array


def steps(held: Ordered, running: Curve) -> Steps:
    """Counts of each group of equal confidences; zeros but at a group's last entry."""
    xp = arrays.namespace(running.count)
    last = held.last == xp.arange(len(held.last))
    wrong = running.count - running.hit
    end, start = held.last + 1, held.first
    parts = (
        running.count[end] - running.count[start],
        wrong[end] - wrong[start],
        running.count[-1] - running.count[end],
        wrong[-1] - wrong[end],
        wrong[start],
    )
    return Steps(*(xp.where(last, x, xp.zeros_like(x)) for x in parts))


def area_risk(step: Steps) -> Array:
    """Area under the risk-coverage curve from its steps; see `aurc`."""
    xp = arrays.namespace(step.count)
    rate = arrays.share(step.errors, step.count)
    # sum over the step's ranks k of (errors_above + rate (k - count_above)) / k
    inverse = _inverse_sum(step.count_above, step.count)
    risk = step.errors + (step.errors_above - rate * step.count_above) * inverse
    return arrays.share(xp.sum(risk), xp.sum(step.count))


def ranking(step: Steps) -> tuple[Array, Array]:
    """Area under the generalized risk-coverage curve and AUROC; see `augrc`."""
    xp = arrays.namespace(step.count)
    n = xp.sum(step.count)
    # shares, not counts: products of counts leave float32 behind
    wrong, hit = arrays.share(step.errors, n), arrays.share(step.count - step.errors, n)
    below = arrays.share(step.errors_below, n)
    good = xp.sum(hit * (below + wrong / 2))
    errors, pairs = xp.sum(wrong), xp.sum(wrong) * xp.sum(hit)
    half = xp.full_like(good, 0.5)
    auroc = xp.where(pairs > 0, arrays.share(good, pairs), half)
    return pairs - good + xp.square(errors) / 2, auroc


def risk_at(held: Ordered, running: Curve, coverage: float | Array) -> Array:
    """Share of errors among the ceil(coverage n) most confident; see the metric."""
    xp = arrays.namespace(running.count)
    n = running.count[-1]
    # rounding must not lift coverage * n above the whole number that it is
    answered = xp.ceil(coverage * n * (1 - 4 * float(xp.finfo(n.dtype).eps)))
    rank = n - answered
    at = xp.searchsorted(running.count[1:], rank, side="right")
    at = xp.minimum(at, len(held.last) - 1)
    start, end = held.first[at], held.last[at] + 1
    wrong = running.count - running.hit
    group = running.count[end] - running.count[start]
    part = arrays.share(rank - running.count[start], group)
    below = wrong[start] + part * (wrong[end] - wrong[start])
    return arrays.share(wrong[-1] - below, answered)


def aurc(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Area under the risk-coverage curve, 0 to 1: lower is better.

    Mean over k of the error rate of the k most confident examples; Geifman and
    El-Yaniv, 2017; Geifman et al., 2019, who name it.
    """
    return area_risk(steps(*_curve(probs_NY, label_N, weight_N)))


def augrc(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Area under the generalized risk-coverage curve, 0 to 1/2: lower is better.

    Mean rate of undetected failures over working points, (1 - AUROC) a (1 - a) +
    (1 - a)^2 / 2 with accuracy a; Traub et al., 2024.
    """
    return ranking(steps(*_curve(probs_NY, label_N, weight_N)))[0]


def auroc_error(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None
) -> Array:
    """Probability that a right answer is more confident than a wrong one, ties half.

    0.5 where nothing or everything is wrong: there the ranking says nothing.
    """
    return ranking(steps(*_curve(probs_NY, label_N, weight_N)))[1]


def risk_at_coverage(
    probs_NY: Array,
    label_N: Array,
    coverage: float | Array,
    weight_N: Array | None = None,
) -> Array:
    """Error rate of the ceil(coverage n) most confident examples, 0 to 1.

    Args:
      probs_NY: probabilities.
      label_N: classes.
      coverage: share that is answered, above 0 and at most 1; or an array of them.
      weight_N: 0 for padding rows.
    """
    return risk_at(*_curve(probs_NY, label_N, weight_N), coverage)


def _curve(probs_NY: Array, label_N: Array, weight_N: Array | None):
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    held = equal_mass.of_top(probs_NY, label_N)
    return held, equal_mass.curve(held, weight_N)


def _inverse_sum(start: Array, count: Array) -> Array:
    """Sum of 1 / k for k from start + 1 to start + count, elementwise.

    The first eight terms are added; the rest is the asymptotic series of the digamma
    function at 1/2 off, whose first term left out is below 1e-10 from there on. A
    difference of two tabulated harmonic numbers would cancel in float32.
    """
    xp = arrays.namespace(start)
    head = 8
    out = xp.zeros_like(start)
    for j in range(1, head + 1):
        out = out + xp.where(count >= j, 1 / (start + j), xp.zeros_like(start))
    a, b = start + head + 0.5, start + xp.maximum(count, head) + 0.5
    tail = xp.log1p((b - a) / a)
    for power, factor in ((2, 1 / 24), (4, -7 / 960), (6, 31 / 8064)):
        tail = tail + factor * (b**-power - a**-power)
    return out + tail
