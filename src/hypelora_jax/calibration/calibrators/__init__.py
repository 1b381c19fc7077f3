"""Post-hoc calibrators by name: fitted on the raw logits of a held-out split.

Every fit takes `(logits_NY, label_N, weight_N=None)`, runs in float64 on the host and
raises UserError for logits that are not finite or labels that are no classes. Every
apply gives numpy probabilities for numpy logits, and for jax logits works under jit.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from hypelora_jax.calibration.calibrators import affine, monotone, stepwise
from hypelora_jax.calibration.calibrators import temperature as scaling
from hypelora_jax.calibration.calibrators.states import (
    Identity,
    from_json,
    kind,
    num_classes,
    to_json,
)
from hypelora_jax.calibration.calibrators.temperature import (
    T_MAX,
    T_MIN,
    Temperature,
    softmax,
)
from hypelora_jax.errors import UserError, choose
from hypelora_jax.types import Calibrator

__all__ = [
    "CALIBRATORS",
    "T_MAX",
    "T_MIN",
    "Identity",
    "Temperature",
    "apply",
    "build",
    "cross_fitted",
    "describe",
    "fit_like",
    "from_json",
    "identity",
    "kind",
    "softmax",
    "temperature",
    "to_json",
]


def identity() -> Calibrator:
    """No calibration: softmax of the raw logits."""
    return Calibrator(
        fit=lambda logits_NY, label_N, weight_N=None: Identity(),
        apply=lambda state, logits_NY: softmax(logits_NY),
    )


def temperature() -> Calibrator:
    """Temperature scaling: the logits divided by one number (Guo et al., 2017).

    T lies in [T_MIN, T_MAX] and is 1 unless another T has a lower NLL on the split, so
    the fit is never worse than none.
    """
    return Calibrator(scaling.fit, scaling.apply)


CALIBRATORS: dict[str, Callable[[], Calibrator]] = {
    "temperature": temperature,
    "vector": lambda: Calibrator(affine.fit_vector, affine.apply_vector),
    "dirichlet": lambda: Calibrator(affine.fit_dirichlet, affine.apply_dirichlet),
    "isotonic": lambda: Calibrator(monotone.fit_isotonic, monotone.apply_isotonic),
    "histogram": lambda: Calibrator(stepwise.fit_histogram, stepwise.apply_histogram),
    "beta": lambda: Calibrator(monotone.fit_beta, monotone.apply_beta),
    "platt_binner": lambda: Calibrator(
        stepwise.fit_platt_binner, stepwise.apply_platt_binner
    ),
    "identity": identity,
}


def build(name: str) -> Calibrator:
    """Calibrator by name; UserError lists the names."""
    return choose(CALIBRATORS, name, "calibrator")()


def apply(state: Any, logits_NY: Any) -> Any:
    """Probabilities (N, Y) of raw logits under a fitted state of any kind.

    Raises:
      UserError: the state was fitted for another number of classes.
    """
    got, wanted = np.shape(logits_NY)[1], num_classes(state)
    if wanted not in (None, got):
        raise UserError(
            f"the calibrator was fitted for {wanted} classes and the logits have {got};"
            " fit it again: hypelora calibrate"
        )
    return build(kind(state)).apply(state, logits_NY)


def fit_like(state: Any, logits_NY: Any, label_N: Any) -> Any:
    """A new fit of the same kind as a state, with what was chosen for it kept."""
    if kind(state) == "dirichlet":
        return affine.fit_dirichlet(logits_NY, label_N, penalty=state.penalty)
    return build(kind(state)).fit(logits_NY, label_N)


def cross_fitted(
    state: Any, logits_NY: np.ndarray, label_N: np.ndarray, folds: int = 10
) -> np.ndarray:
    """Probabilities (N, Y) of the examples a state was fitted on, as if they were new.

    Each fold gets those of a fit on the other folds. What a flexible calibrator gives
    on its own examples is too good: conformal sets made from it cover too little. A
    state that was not fitted, or on fewer than 2 examples a fold, is applied as it is.
    """
    n = len(label_N)
    given = kind(state) == "identity" or getattr(state, "n", None) == 0
    if n < 2 * folds or given:
        return apply(state, np.asarray(logits_NY, np.float64))
    fold_N = np.random.default_rng(0).permutation(n) % folds
    out_NY = np.empty(np.shape(logits_NY))
    for fold in range(folds):
        held = fold_N == fold
        other = fit_like(state, logits_NY[~held], label_N[~held])
        out_NY[held] = apply(other, np.asarray(logits_NY[held], np.float64))
    return out_NY


def describe(state: Any) -> str:
    """What a fitted state is, short enough for a legend: "T = 1.31", "vector"."""
    name = kind(state)
    if name == "temperature":
        return f"T = {state.temperature:.3g}"
    if name == "dirichlet":
        return "Dirichlet"
    if name in ("histogram", "platt_binner"):
        bins = max(len(values) for values in state.values)
        return f"{name.replace('_', '-').replace('platt', 'Platt')}, {bins} bins"
    return {"identity": "none"}.get(name, name)
