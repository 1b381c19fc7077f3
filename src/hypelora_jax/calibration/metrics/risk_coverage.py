"""Selective prediction: whether the model is wrong where it is unsure.

The most confident examples are answered and the rest refused. Examples of equal
confidence have no order, so each number is the mean over all their orders.
"""

from typing import NamedTuple

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import ranking
from hypelora_jax.calibration.metrics.ranking import Curve, Ranking

COVERAGES = (0.5, 0.8, 0.9)


class Steps(NamedTuple):
    """Sums at each distinct confidence, ascending (E,).

    The last entry of each confidence has its sums; other entries are 0.
    """

    weight: Array  # examples of this confidence
    errors: Array  # wrong examples among them
    weight_above: Array  # examples of higher confidence
    errors_above: Array
    errors_below: Array


def steps(entries: Ranking, running: Curve) -> Steps:
    """Sums of each group of equal confidences."""
    xp = arrays.namespace(running.weight)
    last = entries.last == xp.arange(len(entries.last))
    wrong = running.weight - running.hit
    end, start = entries.last + 1, entries.first
    parts = (
        running.weight[end] - running.weight[start],
        wrong[end] - wrong[start],
        running.weight[-1] - running.weight[end],
        wrong[-1] - wrong[end],
        wrong[start],
    )
    return Steps(*(xp.where(last, x, xp.zeros_like(x)) for x in parts))


def area_risk(step: Steps) -> Array:
    """Area under the risk-coverage curve from its steps; see `aurc`."""
    xp = arrays.namespace(step.weight)
    rate = arrays.share(step.errors, step.weight)
    # sum over the step's ranks k of (errors_above + rate (k - weight_above)) / k
    inverse = _inverse_sum(step.weight_above, step.weight)
    risk = step.errors + (step.errors_above - rate * step.weight_above) * inverse
    return arrays.share(xp.sum(risk), xp.sum(step.weight))


def areas(step: Steps) -> tuple[Array, Array]:
    """Area under the generalized risk-coverage curve and AUROC; see `augrc`."""
    xp = arrays.namespace(step.weight)
    n = xp.sum(step.weight)
    # shares, because products of counts would lose digits in float32
    wrong, hit = (
        arrays.share(step.errors, n),
        arrays.share(step.weight - step.errors, n),
    )
    below = arrays.share(step.errors_below, n)
    good = xp.sum(hit * (below + wrong / 2))
    errors, pairs = xp.sum(wrong), xp.sum(wrong) * xp.sum(hit)
    half = xp.full_like(good, 0.5)
    auroc = xp.where(pairs > 0, arrays.share(good, pairs), half)
    return pairs - good + xp.square(errors) / 2, auroc


def risk_at(entries: Ranking, running: Curve, coverage: float | Array) -> Array:
    """Error rate of the ceil(coverage n) most confident; see `risk_at_coverage`."""
    xp = arrays.namespace(running.weight)
    n = running.weight[-1]
    # rounding must not move an integer coverage * n up to the next one
    answered = xp.ceil(coverage * n * (1 - 4 * float(xp.finfo(n.dtype).eps)))
    rank = n - answered
    at = xp.searchsorted(running.weight[1:], rank, side="right")
    at = xp.minimum(at, len(entries.last) - 1)
    start, end = entries.first[at], entries.last[at] + 1
    wrong = running.weight - running.hit
    group = running.weight[end] - running.weight[start]
    part = arrays.share(rank - running.weight[start], group)
    below = wrong[start] + part * (wrong[end] - wrong[start])
    return arrays.share(wrong[-1] - below, answered)


def aurc(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Area under the risk-coverage curve, 0 to 1: lower is better.

    It is the mean over k of the error rate of the k most confident examples (Geifman
    and El-Yaniv, 2017; Geifman et al., 2019, give it this name).
    """
    return area_risk(steps(*_curve(probs_NY, label_N, weight_N)))


def augrc(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Area under the generalized risk-coverage curve, 0 to 1/2: lower is better.

    It is the mean rate of undetected failures over working points (Traub et al., 2024),
    (1 - AUROC) a (1 - a) + (1 - a)^2 / 2 with the accuracy a.
    """
    return areas(steps(*_curve(probs_NY, label_N, weight_N)))[0]


def auroc_error(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None
) -> Array:
    """Probability that a right answer is more confident than a wrong one; ties half.

    It is 0.5 if all answers are right or all are wrong, since nothing can be ranked.
    """
    return areas(steps(*_curve(probs_NY, label_N, weight_N)))[1]


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
      coverage: share of answered examples, above 0 and at most 1; or an array of them.
      weight_N: 0 for padding rows.
    """
    entries, running = _curve(probs_NY, label_N, weight_N)
    return risk_at(entries, running, coverage)


def _curve(
    probs_NY: Array, label_N: Array, weight_N: Array | None
) -> tuple[Ranking, Curve]:
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    entries = ranking.of_top(probs_NY, label_N)
    return entries, ranking.curve(entries, weight_N)


def _inverse_sum(start: Array, count: Array) -> Array:
    """Sum of 1 / k for k from start + 1 to start + count, elementwise.

    The first eight terms are added one by one. The rest is the asymptotic series of
    the digamma function, shifted by 1/2; its first omitted term is below 1e-10 there.
    A difference of two tabulated harmonic numbers would cancel in float32.
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
