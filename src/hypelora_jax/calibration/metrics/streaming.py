"""Metrics that are functions of sums over examples, so that parts can be merged.

    state = init(num_classes)
    for batch in ...: state = update(state, probs_BY, label_B, weight_B)
    numbers = compute(merge(state, state_of_another_host))

All of it works on numpy (float64) and jax arrays, inside jit, and under any sharding of
the rows: the sums of the parts are the sums of the whole.
"""

from typing import NamedTuple

import jax
import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import binned, likelihood
from hypelora_jax.calibration.metrics.binned import MIN_COUNT, Bins


class Sums(NamedTuple):
    """Weighted sums over the examples seen: a pytree that merges by addition."""

    count: Array
    hit: Array
    nll: Array
    brier: Array
    top: Bins  # (M,) of the top label's confidence
    classes: Bins  # (Y, M) of each class's probability


def init(num_classes: int, bins: int = 10, xp=np) -> Sums:
    """Sums over nothing, float64 with numpy, JAX's default with `xp=jax.numpy`."""
    zero = xp.zeros(())
    return Sums(
        *[zero] * 4,
        Bins(*[xp.zeros(bins)] * 3),
        Bins(*[xp.zeros((num_classes, bins))] * 3),
    )


def update(
    state: Sums, probs_BY: Array, label_B: Array, weight_B: Array | None = None
) -> Sums:
    """Sums with a batch added; rows of weight 0 are padding."""
    bins = state.top.count.shape[0]
    return merge(state, of_rows(probs_BY, label_B, weight_B, bins))


def merge(a: Sums, b: Sums) -> Sums:
    """Sums over the examples of both."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def of_rows(
    probs_BY: Array, label_B: Array, weight_B: Array | None = None, bins: int = 10
) -> Sums:
    """Sums over the examples of one batch."""
    xp, p, y, w = arrays.clean(probs_BY, label_B, weight_B)
    _, hit_B = arrays.top(p, y)
    scores = hit_B, likelihood.nll_of(p, y), likelihood.brier_of(p, y)
    return Sums(
        xp.sum(w),
        *(arrays.total(x, w) for x in scores),
        binned.of_top(p, y, w, bins),
        binned.of_classes(p, y, w, bins),
    )


def compute(state: Sums) -> dict[str, Array]:
    """Metrics by name, as `metrics.compute_all` has them; 0 where nothing was seen."""
    n = state.count
    parts = binned.decomposition(state.classes)
    brier = arrays.share(state.brier, n)
    reliability, resolution, uncertainty = parts
    return {
        "accuracy": arrays.share(state.hit, n),
        "nll": arrays.share(state.nll, n),
        "brier": brier,
        "ece": binned.l1(state.top),
        "classwise_ece": binned.l1(state.classes),
        "mce": binned.largest(state.top),
        f"mce_min_{MIN_COUNT}": binned.largest(state.top, MIN_COUNT),
        "ece_l2": binned.l2(state.top),
        "brier_reliability": reliability,
        "brier_resolution": resolution,
        "brier_uncertainty": uncertainty,
        "brier_within_bins": brier - (reliability - resolution + uncertainty),
    }
