"""Post-hoc calibrators: fitted on the raw logits of a held-out split."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from hypelora_jax.types import Calibrator, UserError

# Bounds of a fitted temperature. The lower one is met on separable splits, whose
# likelihood has no maximum: it caps how sure the calibrated model may become. The
# upper one is met where the logits say nothing, and there means uniform probabilities
# even for logits of magnitude 1e4.
T_MIN, T_MAX = 1e-2, 1e6


class Identity(NamedTuple):
    """State of no calibrator: probabilities are the softmax of the logits."""


class Temperature(NamedTuple):
    """State of temperature scaling: T > 0, and the NLL (nats) it was chosen by."""

    temperature: float
    nll_before: float = math.nan  # of the split it was fitted on, at T = 1
    nll_after: float = math.nan
    n: int = 0  # examples it was fitted on


def softmax(logits_NY: Any, temperature: Any = 1.0) -> Any:
    """Probabilities at a temperature > 0, numpy for numpy and jax for jax arrays.

    At least float32; numpy float64 stays float64 whatever jax's 64-bit flag says.
    """
    if isinstance(logits_NY, jax.Array):
        wide_NY = logits_NY.astype(jnp.promote_types(logits_NY.dtype, jnp.float32))
        return jax.nn.softmax(wide_NY / temperature, axis=-1)
    logits_NY = np.asarray(logits_NY)
    wide_NY = logits_NY.astype(np.promote_types(logits_NY.dtype, np.float32))
    return scipy.special.softmax(wide_NY / temperature, axis=-1)


def identity() -> Calibrator:
    """No calibration: softmax of the raw logits."""
    return Calibrator(
        fit=lambda logits_NY, label_N, weight_N=None: Identity(),
        apply=lambda state, logits_NY: softmax(logits_NY),
    )


def temperature() -> Calibrator:
    """Temperature scaling: the logits divided by one number (Guo et al., 2017).

    `fit(logits_NY, label_N, weight_N=None)` runs in float64 on the host and raises
    UserError for logits that are not finite. T lies in [T_MIN, T_MAX] and is 1 unless
    another T has a lower NLL on the split, so the fit is never worse than none.
    """
    return Calibrator(
        fit=_fit_temperature,
        apply=lambda state, logits_NY: softmax(logits_NY, state.temperature),
    )


def _examples(logits: Any, label: Any, weight: Any) -> tuple[np.ndarray, ...]:
    """Float64 logits, each row less its label's logit, and weights: rows that count."""
    z, y = np.asarray(logits, np.float64), np.asarray(label)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    z, y, w = z[w > 0], y[w > 0], w[w > 0]
    if np.any((y < 0) | (y >= z.shape[1])):
        raise UserError(
            f"labels run from {y.min()} to {y.max()}; wanted 0 to {z.shape[1] - 1} to "
            "fit a temperature: drop the rows without a label"
        )
    if bad := int(np.sum(~np.isfinite(z).all(axis=1))):
        raise UserError(
            f"{bad} of {len(z)} rows of logits are not finite; wanted finite logits to "
            "fit a temperature: look for a diverged run (lower optim.lr)"
        )
    return z - np.take_along_axis(z, y[:, None], axis=1), w


def _fit_temperature(logits_NY: Any, label_N: Any, weight_N: Any = None) -> Temperature:
    z_NY, w_N = _examples(logits_NY, label_N, weight_N)
    if not len(z_NY):
        return Temperature(1.0)

    def loss(log_t: float) -> float:
        logp_N = -scipy.special.logsumexp(z_NY * math.exp(-log_t), axis=1)
        return float(np.average(-logp_N, weights=w_N))

    def slope(log_t: float) -> float:
        # d loss / d (1/T): the loss is convex in 1/T, so this has one change of sign
        p_NY = scipy.special.softmax(z_NY * math.exp(-log_t), axis=1)
        return float(np.average(np.sum(p_NY * z_NY, axis=1), weights=w_N))

    low, high = math.log(T_MIN), math.log(T_MAX)
    if slope(low) <= 0:
        log_t = low
    elif slope(high) >= 0:
        log_t = high
    else:
        log_t = scipy.optimize.brentq(slope, low, high, xtol=1e-12)
    before, after = loss(0.0), loss(log_t)
    if not after < before:
        log_t, after = 0.0, before
    t = min(max(math.exp(log_t), T_MIN), T_MAX)
    return Temperature(t, before, after, len(z_NY))


CALIBRATORS: dict[str, Callable[[], Calibrator]] = {
    "identity": identity,
    "temperature": temperature,
}
STATES: dict[str, type] = {"identity": Identity, "temperature": Temperature}


def build(name: str) -> Calibrator:
    """Calibrator by name; UserError lists the names."""
    if name not in CALIBRATORS:
        raise UserError(
            f"calibrator is {name!r}; wanted one of {', '.join(sorted(CALIBRATORS))}"
        )
    return CALIBRATORS[name]()


def apply(state: Any, logits_NY: Any) -> Any:
    """Probabilities (N, Y) of raw logits under a fitted state of any kind."""
    return build(_kind(state)).apply(state, logits_NY)


def describe(state: Any) -> str:
    """A fitted state in a few words, for tables and diagrams: "T = 1.31"."""
    if isinstance(state, Temperature):
        return f"T = {state.temperature:.3g}"
    return _kind(state)


def _kind(state: Any) -> str:
    return next(kind for kind, cls in STATES.items() if isinstance(state, cls))


def to_json(state: Any) -> str:
    """One JSON object: `kind` and the fields of the state; NaN is written as null."""
    values = {
        k: None if isinstance(v, float) and math.isnan(v) else v
        for k, v in state._asdict().items()
    }
    return json.dumps({"kind": _kind(state), **values}, allow_nan=False)


def from_json(text: str) -> Any:
    """State from what `to_json` wrote.

    Raises:
      UserError: no JSON object, an unknown kind or field, or a temperature that is no
        finite number above 0.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"calibrator is not JSON ({e}); fit it again") from None
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind not in STATES:
        raise UserError(
            f"calibrator has kind {kind!r}; wanted one of {', '.join(sorted(STATES))}"
        )
    if unknown := sorted(set(values) - set(STATES[kind]._fields)):
        raise UserError(f"calibrator {kind} has an unknown field {unknown[0]!r}")
    if kind == "temperature":
        t = values.get("temperature")
        if (
            isinstance(t, bool)
            or not isinstance(t, int | float)
            or not 0 < t < math.inf
        ):
            raise UserError(
                f"calibrator has temperature {t!r}; wanted a number above 0"
            )
    nothing = {k: math.nan for k, v in values.items() if v is None}
    return STATES[kind](**{**values, **nothing})
