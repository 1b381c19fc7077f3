"""Calibration metrics of probabilities, as single functions and all of them at once.

This package sees only arrays, and its modules do not import this file. Resampling
belongs to `calibration.bootstrap`.

Every metric takes `(probs_NY, label_N, weight_N=None)` and is written once for numpy
and jax arrays. The type of the arrays decides where and how precisely it is computed.
numpy float64 is for the numbers that a user reads (`compute_all`). jax float32 is for
monitoring inside jit, with `bins`, `eps`, `coverage` and `pairing` as static arguments.
`weight_N` is 1 for examples and 0 for padding rows, which are ignored even if they
contain NaN. Another whole number is how many examples a row stands for. Only
`kernel_ce` counts such a row once, because two copies of an example are not a pair.
Without any examples a metric is 0 (AUROC: 0.5).
"""

import logging
from typing import Any

import numpy as np

from hypelora_jax.calibration.metrics import (
    binned,
    consistency,
    equal_mass,
    ranking,
    risk_coverage,
    sums,
    thresholded,
)
from hypelora_jax.calibration.metrics.binned import (
    classwise_ece,
    ece,
    ece_l2,
    mce,
    reliability,
)
from hypelora_jax.calibration.metrics.equal_mass import (
    ace,
    ace_per_class,
    ece_debiased,
    ece_mass,
    ece_mass_l2,
    ece_mass_max,
)
from hypelora_jax.calibration.metrics.kernel import kernel_ce
from hypelora_jax.calibration.metrics.likelihood import (
    SOFT,
    accuracy,
    brier,
    nll,
    soft_brier,
    soft_kl,
    soft_tv,
)
from hypelora_jax.calibration.metrics.risk_coverage import (
    augrc,
    aurc,
    auroc_error,
    risk_at_coverage,
)
from hypelora_jax.calibration.metrics.smooth import smooth_ece
from hypelora_jax.calibration.metrics.thresholded import thresholded_ace

__all__ = [
    "SOFT",
    "accuracy",
    "ace",
    "ace_per_class",
    "augrc",
    "aurc",
    "auroc_error",
    "brier",
    "classwise_ece",
    "compute_all",
    "ece",
    "ece_debiased",
    "ece_l2",
    "ece_mass",
    "ece_mass_l2",
    "ece_mass_max",
    "kernel_ce",
    "mce",
    "nll",
    "reliability",
    "risk_at_coverage",
    "smooth_ece",
    "soft_brier",
    "soft_kl",
    "soft_tv",
    "thresholded_ace",
]


def compute_all(
    probs: np.ndarray,
    labels: np.ndarray,
    bins: int = 10,
    *,
    soft: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute every metric on the host in float64, as Python numbers.

    Args:
      probs: (N, Y), rows sum to 1.
      labels: (N,) classes in 0 .. Y - 1; leave out examples without a label.
      bins: number of bins of the calibration errors.
      soft: (N, Y) shares of raters; adds soft_tv, soft_kl and soft_brier.
      seed: seed of the labels drawn for ece_noise_floor and consistency_p.

    Returns:
      n, num_classes and the metrics by name; docs/calibration.md says what each one is.
    """
    p, y = np.asarray(probs, np.float64), np.asarray(labels)
    n, num_classes = p.shape
    if zeros := int(np.sum(p[np.arange(n), y] == 0)):
        logging.getLogger(__name__).warning(
            "%d of %d labels have probability 0; the nll counts each of them as %.1e",
            *(zeros, n, np.finfo(np.float64).tiny),
        )
    by_sums = sums.compute(sums.of_rows(p, y, bins))
    first = ("accuracy", "nll", "brier", "ece", "classwise_ece", "mce")
    out: dict[str, Any] = {name: by_sums.pop(name) for name in first}
    entries = ranking.of_top(p, y)
    running = ranking.curve(entries, np.ones(n))
    out["ace"] = binned.l1(equal_mass.by_rank(running, bins))
    out |= thresholded.compute(p, y, bins)
    out |= by_sums
    out |= of_ranking(entries, running, bins)
    out["ace_per_class"] = ace_per_class(p, y, bins=bins)
    out["smooth_ece"] = smooth_ece(p, y)
    out["kernel_ce"] = kernel_ce(p, y)
    if soft is not None:
        s = np.asarray(soft, np.float64)
        out |= {name: np.mean(of_each(p, s)) for name, of_each in SOFT.items()}
    chance = consistency.check(p, y, bins=bins, seed=seed)
    out |= {"ece_noise_floor": chance.noise_floor, "consistency_p": chance.p}
    numbers = {name: float(value) for name, value in out.items()}
    return {"n": n, "num_classes": num_classes, **numbers}


def of_ranking(
    entries: ranking.Ranking, running: ranking.Curve, bins: int
) -> dict[str, Any]:
    """Compute the metrics of a ranking of the predicted classes, except `ace`."""
    mass = equal_mass.by_value(entries, running, bins)
    step = risk_coverage.steps(entries, running)
    area, auroc = risk_coverage.areas(step)
    risks = {
        f"risk_at_coverage_{c}": risk_coverage.risk_at(entries, running, c)
        for c in risk_coverage.COVERAGES
    }
    return {
        "ece_mass": binned.l1(mass),
        "ece_mass_l2": binned.l2(mass),
        "ece_mass_max": binned.largest(mass),
        "ece_debiased": equal_mass.debiased(mass),
        "aurc": risk_coverage.area_risk(step),
        "augrc": area,
        "auroc_error": auroc,
        **risks,
    }
