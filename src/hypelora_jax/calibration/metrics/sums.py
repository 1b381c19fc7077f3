"""Metrics that are functions of sums over examples.

A bootstrap replica needs only these sums, not the rows, and the sums of two parts of
the data add up to those of the whole.
"""

from typing import NamedTuple

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import binned, likelihood
from hypelora_jax.calibration.metrics.binned import MIN_COUNT, Bins

NAMES = (
    *("accuracy", "nll", "brier", "ece", "classwise_ece", "mce"),
    *(f"mce_min_{MIN_COUNT}", "ece_l2", "brier_reliability", "brier_resolution"),
    *("brier_uncertainty", "brier_within_bins"),
)


class Sums(NamedTuple):
    """Weighted sums over examples."""

    weight: Array
    hit: Array
    nll: Array
    brier: Array
    top: Bins  # (M,) of the predicted class's confidence
    classes: Bins  # (Y, M) of each class's probability


def of_rows(probs_NY: Array, label_N: Array, bins: int = 10) -> Sums:
    """Sums over the examples given."""
    xp, p, y, w = arrays.clean(probs_NY, label_N, None)
    _, hit_N = arrays.top(p, y)
    return Sums(
        xp.sum(w),
        arrays.total(hit_N, w),
        arrays.total(likelihood.nll_of(p, y), w),
        arrays.total(likelihood.brier_of(p, y), w),
        binned.of_top(p, y, w, bins),
        binned.of_classes(p, y, w, bins),
    )


def compute(state: Sums) -> dict[str, Array]:
    """Compute the metrics of NAMES, in that order; each is 0 if there is no example."""
    n = state.weight
    brier = arrays.share(state.brier, n)
    reliability, resolution, uncertainty = binned.decomposition(state.classes)
    values = (
        arrays.share(state.hit, n),
        arrays.share(state.nll, n),
        brier,
        binned.l1(state.top),
        binned.l1(state.classes),
        binned.largest(state.top),
        binned.largest(state.top, MIN_COUNT),
        binned.l2(state.top),
        reliability,
        resolution,
        uncertainty,
        brier - (reliability - resolution + uncertainty),
    )
    return dict(zip(NAMES, values, strict=True))
