"""Post-hoc calibrators by name, fitted on the raw logits of a held-out split.

This package sees only logits and labels. Files, and the choice of the split, are left
to its callers.

Every fit takes `(logits_NY, label_N, weight_N=None)`, runs in float64 on the host and
raises UserError for logits that are not finite and labels that are not classes. Every
apply returns numpy probabilities for numpy logits, and works under jit for jax logits.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.calibrators import affine, monotone, states, stepwise
from hypelora_jax.calibration.calibrators import temperature as scaling
from hypelora_jax.calibration.calibrators.states import Identity
from hypelora_jax.calibration.calibrators.temperature import (
    T_MAX,
    T_MIN,
    Temperature,
    softmax,
)
from hypelora_jax.errors import UserError

__all__ = [
    "CALIBRATORS",
    "T_MAX",
    "T_MIN",
    "Calibrator",
    "Identity",
    "Temperature",
    "apply",
    "build",
    "cross_fitted",
    "describe",
    "fit_like",
    "from_json",
    "kind",
    "softmax",
    "to_json",
]


class Calibrator(NamedTuple):
    """A kind of calibrator.

    `fit(logits_NY, label_N, weight_N=None) -> state` and
    `apply(state, logits_NY) -> probs_NY`; `state` is the type that `fit` returns, and
    `label` is the name in legends.
    """

    label: str
    state: type
    fit: Callable[..., Any]
    apply: Callable[..., Any]


CALIBRATORS: dict[str, Calibrator] = {
    "temperature": Calibrator("T", Temperature, scaling.fit, scaling.apply),
    "vector": Calibrator(
        "vector", affine.Vector, affine.fit_vector, affine.apply_vector
    ),
    "dirichlet": Calibrator(
        "Dirichlet", affine.Dirichlet, affine.fit_dirichlet, affine.apply_dirichlet
    ),
    "isotonic": Calibrator(
        "isotonic", monotone.Isotonic, monotone.fit_isotonic, monotone.apply_isotonic
    ),
    "histogram": Calibrator(
        "histogram",
        stepwise.Histogram,
        stepwise.fit_histogram,
        stepwise.apply_histogram,
    ),
    "beta": Calibrator("beta", monotone.Beta, monotone.fit_beta, monotone.apply_beta),
    "platt_binner": Calibrator(
        "Platt-binner",
        stepwise.PlattBinner,
        stepwise.fit_platt_binner,
        stepwise.apply_platt_binner,
    ),
    "identity": Calibrator(
        "none",
        Identity,
        lambda logits_NY, label_N, weight_N=None: Identity(),
        lambda state, logits_NY: softmax(logits_NY),
    ),
}


def build(name: str) -> Calibrator:
    """Look up a calibrator by name.

    Raises:
      UserError: there is no such calibrator; the message lists the names.
    """
    if name not in CALIBRATORS:
        raise UserError(
            f"calibrator is {name!r}; expected one of {', '.join(sorted(CALIBRATORS))}"
        )
    return CALIBRATORS[name]


def kind(state: Any) -> str:
    """Return the name of the calibrator that a state belongs to."""
    return next(name for name, c in CALIBRATORS.items() if isinstance(state, c.state))


def apply(state: Any, logits_NY: Array) -> Any:
    """Compute probabilities (N, Y) of raw logits with a fitted state of any kind.

    Raises:
      UserError: the state was fitted for another number of classes.
    """
    got, wanted = np.shape(logits_NY)[1], states.num_classes(state)
    if wanted not in (None, got):
        raise UserError(
            f"the calibrator was fitted for {wanted} classes, but the logits have "
            f"{got}; expected {wanted}. Fit a calibrator on logits of these classes"
        )
    return CALIBRATORS[kind(state)].apply(state, logits_NY)


def fit_like(state: Any, logits_NY: Any, label_N: Any) -> Any:
    """Fit a calibrator of the same kind as `state`, with its penalty if it has one."""
    if isinstance(state, affine.Dirichlet):
        return affine.fit_dirichlet(logits_NY, label_N, penalty=state.penalty)
    return CALIBRATORS[kind(state)].fit(logits_NY, label_N)


def cross_fitted(
    state: Any, logits_NY: np.ndarray, label_N: np.ndarray, folds: int = 10
) -> np.ndarray:
    """Probabilities (N, Y) of the examples a state was fitted on, as if they were new.

    The probabilities of each fold come from a fit on the other folds. A flexible
    calibrator is over-confident on the examples it was fitted on, and conformal sets
    from them would have too little coverage. A state that was not fitted, or was fitted
    on fewer than 2 examples per fold, is applied unchanged.
    """
    n = len(label_N)
    given = isinstance(state, Identity) or getattr(state, "n", None) == 0
    if n < 2 * folds or given:
        return apply(state, np.asarray(logits_NY, np.float64))
    fold_N = np.random.default_rng(0).permutation(n) % folds
    out_NY = np.empty(np.shape(logits_NY))
    for fold in range(folds):
        inside = fold_N == fold
        other = fit_like(state, logits_NY[~inside], label_N[~inside])
        out_NY[inside] = apply(other, np.asarray(logits_NY[inside], np.float64))
    return out_NY


def describe(state: Any) -> str:
    """Describe a fitted state for a legend: "T = 1.31", "histogram, 10 bins"."""
    label = CALIBRATORS[kind(state)].label
    if isinstance(state, Temperature):
        return f"{label} = {state.temperature:.3g}"
    if isinstance(state, stepwise.Histogram | stepwise.PlattBinner):
        bins = max(len(values) for values in state.values)
        return f"{label}, {bins} bins"
    return label


def to_json(state: Any) -> str:
    """Write a state as a JSON object of its `kind` and fields; NaN becomes null."""
    values = {field: states.plain(value) for field, value in state._asdict().items()}
    return json.dumps({"kind": kind(state), **values}, allow_nan=False)


def from_json(text: str) -> Any:
    """Read a state that `to_json` wrote.

    Raises:
      UserError: the text is not a JSON object, the kind is unknown, a field is unknown
        or missing, or a value cannot come from a fit.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"the calibrator is not JSON ({e}); fit it again") from None
    name = values.pop("kind", None) if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in CALIBRATORS:
        known = ", ".join(sorted(CALIBRATORS))
        raise UserError(f"the calibrator has kind {name!r}; expected one of {known}")
    cls: Any = CALIBRATORS[name].state  # a NamedTuple
    if unknown := sorted(set(values) - set(cls._fields)):
        raise UserError(
            f"calibrator {name} has an unknown field {unknown[0]!r}; expected only "
            f"{', '.join(cls._fields) or 'its kind'}"
        )
    if cls is Temperature:
        return states.temperature(values)
    if missing := [field for field in cls._fields if field not in values]:
        raise UserError(f"calibrator {name} has no field {missing[0]!r}; fit it again")
    fields = states.fields_of(name, values)
    for field, wanted, right in states.CHECKS.get(cls, ()):
        if not right(fields):
            raise UserError(f"calibrator {name} has a wrong {field}; expected {wanted}")
    return cls(**fields)
