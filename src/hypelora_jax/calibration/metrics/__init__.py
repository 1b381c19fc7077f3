"""Calibration metrics of probabilities: one name for each, and all of them at once.

Every metric takes `(probs_NY, label_N, weight_N=None)` and is written once for numpy
and jax arrays, which decide where and how precisely it is computed: numpy float64 is
what a user reads (`compute_all`), jax float32 is for monitoring inside jit, with
`bins`, `eps`, `coverage` and `pairing` static. `weight_N` is 1 for examples and 0 for
padding rows, which are as good as absent whatever they hold; another whole number is
how many examples a row stands for, but for `kernel_ce`, which only sees whether it is
above 0 (two copies of an example are no pair). With nothing left a metric is 0 (AUROC:
0.5).
"""

import logging
from typing import Any

import numpy as np

from hypelora_jax.calibration.arrays import namespace
from hypelora_jax.calibration.metrics import (
    binned,
    consistency,
    equal_mass,
    likelihood,
    risk_coverage,
    streaming,
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
    thresholded_ace,
)
from hypelora_jax.calibration.metrics.kernel import kernel_ce
from hypelora_jax.calibration.metrics.likelihood import (
    accuracy,
    brier,
    nll,
    soft_brier,
    soft_kl,
    soft_tv,
)
from hypelora_jax.calibration.metrics.risk_coverage import (
    COVERAGES,
    augrc,
    aurc,
    auroc_error,
    risk_at_coverage,
)
from hypelora_jax.calibration.metrics.smooth import smooth_ece

__all__ = [
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
    "namespace",
    "nll",
    "reliability",
    "risk_at_coverage",
    "smooth_ece",
    "soft_brier",
    "soft_kl",
    "soft_tv",
    "thresholded_ace",
]

TACE_EPS = (0.01, 0.001, 0.0001)
SOFT = {"soft_tv": soft_tv, "soft_kl": soft_kl, "soft_brier": soft_brier}
SOFT_OF = {  # the same, of each example
    "soft_tv": likelihood.soft_tv_of,
    "soft_kl": likelihood.soft_kl_of,
    "soft_brier": likelihood.soft_brier_of,
}


def compute_all(
    probs: np.ndarray,
    labels: np.ndarray,
    bins: int = 10,
    *,
    soft: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric as a Python number, computed on the host in float64.

    Args:
      probs: (N, Y), rows sum to 1.
      labels: (N,) classes in 0 .. Y - 1; drop examples without a label before.
      bins: of the calibration errors.
      soft: (N, Y) shares of raters, if there are any: adds soft_tv, soft_kl and
        soft_brier.
      seed: of the labels drawn for ece_noise_floor and consistency_p.

    Returns:
      n, num_classes and the metrics by name; docs/calibration.md says what each one is.
    """
    p, y = np.asarray(probs, np.float64), np.asarray(labels)
    n, num_classes = p.shape
    if zeros := int(np.sum(p[np.arange(n), y] == 0)):
        logging.getLogger(__name__).warning(
            "%d of %d labels have probability 0: counted as %.1e in nll",
            *(zeros, n, np.finfo(np.float64).tiny),
        )
    by_sums = streaming.compute(streaming.of_rows(p, y, bins=bins))
    held = equal_mass.of_top(p, y)
    running = equal_mass.curve(held, np.ones(n))
    first = ("accuracy", "nll", "brier", "ece", "classwise_ece", "mce")
    out = {name: by_sums.pop(name) for name in first}
    out["ace"] = binned.l1(equal_mass.by_rank(running, bins))
    out |= _thresholded(p, y, bins)
    out |= by_sums
    out |= of_order(held, running, bins)
    out["ace_per_class"] = ace_per_class(p, y, bins=bins)
    out["smooth_ece"] = smooth_ece(p, y)
    out["kernel_ce"] = kernel_ce(p, y)
    if soft is not None:
        s = np.asarray(soft, np.float64)
        out |= {name: metric(p, s) for name, metric in SOFT.items()}
    held = consistency.check(p, y, bins=bins, seed=seed)
    out |= {"ece_noise_floor": held.noise_floor, "consistency_p": held.p}
    numbers = {name: float(value) for name, value in out.items()}
    return {"n": n, "num_classes": num_classes, **numbers}


def of_order(
    held: equal_mass.Ordered, running: equal_mass.Curve, bins: int
) -> dict[str, Any]:
    """Metrics of the top labels in order of confidence, but `ace`, by name."""
    mass = equal_mass.by_value(held, running, bins)
    step = risk_coverage.steps(held, running)
    area, auroc = risk_coverage.ranking(step)
    risks = {
        f"risk_at_coverage_{c}": risk_coverage.risk_at(held, running, c)
        for c in COVERAGES
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


def tace_name(eps: float) -> str:
    """Name of the thresholded error: tace_0.01, tace_0.0001, not tace_1e-04."""
    return f"tace_{np.format_float_positional(eps)}"


def _thresholded(p: np.ndarray, y: np.ndarray, bins: int) -> dict[str, Any]:
    """Each threshold under both pairings."""
    out = {}
    for pairing, (held, weight_N) in equal_mass.thresholded(
        p, y, np.ones(len(y))
    ).items():
        running = equal_mass.curve(held, weight_N)
        suffix = "" if pairing == "correct" else f"_{pairing}"
        for eps in TACE_EPS:
            out[tace_name(eps) + suffix] = equal_mass.above(held, running, eps, bins)
    return out
