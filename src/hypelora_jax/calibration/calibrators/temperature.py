"""Temperature scaling: the logits divided by one number (Guo et al., 2017, eq. 9).

The solver is written once for numpy and jax arrays. `fit` runs it in float64 on the
host; `solve` on jax arrays is jittable and may be vmapped over splits.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.calibrators import examples

# Bounds of a fitted temperature. The likelihood of a separable split has no maximum, so
# the fit ends at the lower bound, which limits the confidence of the calibrated model.
# Logits without information end at the upper bound, where even logits of 1e4 become
# uniform.
T_MIN, T_MAX = 1e-2, 1e6
# Bisection alone needs 60 steps from log(T_MAX / T_MIN) = 18.4 to float64's precision.
MAX_STEPS = 100


class Temperature(NamedTuple):
    """State of temperature scaling: T > 0, and the NLL (nats) at T = 1 and at T."""

    temperature: float
    nll_before: float = math.nan  # on the split it was fitted on, at T = 1
    nll_after: float = math.nan
    n: int = 0  # number of examples it was fitted on


class Solution(NamedTuple):
    """Scalars: the temperature, and the NLL (nats) at T = 1 and at that temperature."""

    temperature: Array
    nll_before: Array
    nll_after: Array


def softmax(logits_NY: Any, temperature: Any = 1.0) -> Any:
    """Probabilities at a temperature > 0, numpy for numpy and jax for jax arrays.

    They are at least float32. numpy float64 stays float64, even without jax's 64-bit
    flag.
    """
    if isinstance(logits_NY, jax.Array):
        wide_NY = logits_NY.astype(jnp.promote_types(logits_NY.dtype, jnp.float32))
        return jax.nn.softmax(wide_NY / temperature, axis=-1)
    logits_NY = np.asarray(logits_NY)
    wide_NY = logits_NY.astype(np.promote_types(logits_NY.dtype, np.float32))
    return scipy.special.softmax(wide_NY / temperature, axis=-1)


def fit(logits_NY: Any, label_N: Any, weight_N: Any = None) -> Temperature:
    """Fit the temperature of the lowest NLL in [T_MIN, T_MAX], never worse than T = 1.

    Raises:
      UserError: logits are not finite, or labels are not classes.
    """
    z_NY, y_N, share_N = examples.checked(logits_NY, label_N, weight_N)
    if not len(y_N):
        return Temperature(1.0)
    found = solve(z_NY, y_N, share_N)
    before, after = float(found.nll_before), float(found.nll_after)
    return Temperature(float(found.temperature), before, after, len(y_N))


def apply(state: Temperature, logits_NY: Any) -> Any:
    """Probabilities (N, Y)."""
    return softmax(logits_NY, state.temperature)


def solve(logits_NY: Array, label_N: Array, weight_N: Array) -> Solution:
    """Find the temperature of the lowest NLL in [T_MIN, T_MAX]; ties give T = 1.

    Newton's method runs on log T within a shrinking bracket. Bisection replaces a step
    that leaves the bracket or is longer than half the previous step, so every finite
    input converges. Rows of weight 0 are ignored; without any rows T is 1.
    """
    xp = arrays.namespace(logits_NY)
    z_NY, share_N = _relative(xp, logits_NY, label_N, weight_N)

    def at(log_t: Array) -> tuple[Array, Array, Array]:
        return _moments(xp, z_NY, share_N, xp.exp(-log_t))

    low, high = (xp.asarray(math.log(t), z_NY.dtype) for t in (T_MIN, T_MAX))
    root = _root(xp, at, low, high)
    # the slope by 1 / T falls from low to high; if the sign never changes, take a bound
    root = xp.where(at(low)[1] <= 0, low, xp.where(at(high)[1] >= 0, high, root))
    before, after = at(xp.zeros_like(root))[0], at(root)[0]
    better = after < before
    t = xp.where(better, xp.clip(xp.exp(root), T_MIN, T_MAX), xp.ones_like(root))
    return Solution(t, before, xp.where(better, after, before))


def _relative(
    xp: ModuleType, logits_NY: Array, label_N: Array, weight_N: Array
) -> tuple[Array, Array]:
    """Subtract the label's logit, so that logsumexp is the loss, and compute shares."""
    wide_NY = logits_NY.astype(xp.promote_types(logits_NY.dtype, xp.float32))
    keep_N = weight_N > 0
    label_N = xp.where(keep_N, label_N, xp.zeros_like(label_N))
    wide_NY = xp.where(keep_N[:, None], wide_NY, xp.zeros_like(wide_NY))
    w_N = xp.where(keep_N, weight_N, xp.zeros_like(weight_N)).astype(wide_NY.dtype)
    total = xp.sum(w_N)
    share_N = w_N / xp.where(total > 0, total, xp.ones_like(total))
    return wide_NY - xp.take_along_axis(wide_NY, label_N[:, None], axis=1), share_N


def _moments(
    xp: ModuleType, z_NY: Array, share_N: Array, inverse: Array
) -> tuple[Array, Array, Array]:
    """Mean NLL in nats, and its slope and curvature in the inverse temperature."""
    scaled_NY = z_NY * inverse
    top_N1 = xp.max(scaled_NY, axis=1, keepdims=True)
    e_NY = xp.exp(scaled_NY - top_N1)
    sum_N1 = xp.sum(e_NY, axis=1, keepdims=True)
    p_NY = e_NY / sum_N1
    loss_N = (top_N1 + xp.log(sum_N1))[:, 0]
    mean_N = xp.sum(p_NY * z_NY, axis=1)
    var_N = xp.sum(p_NY * xp.square(z_NY - mean_N[:, None]), axis=1)
    loss, slope, curvature = (xp.sum(share_N * x) for x in (loss_N, mean_N, var_N))
    return loss, slope, curvature


def _root(xp: ModuleType, at: Callable, low: Array, high: Array) -> Array:
    """Find log T between low and high where the slope changes sign from + to -."""
    tolerance = 4 * xp.finfo(low.dtype).eps

    def body(state: tuple) -> tuple:
        u, low, high, last, steps = state
        _, slope, curvature = at(u)
        low, high = xp.where(slope > 0, u, low), xp.where(slope > 0, high, u)
        fall = curvature * xp.exp(-u)  # minus the derivative of the slope by log T
        trusted = xp.abs(slope) < 0.5 * xp.abs(last) * fall
        step = xp.where(trusted, slope / xp.where(trusted, fall, xp.ones_like(fall)), 0)
        inside = trusted & (u + step > low) & (u + step < high)
        step = xp.where(inside, step, 0.5 * (low + high) - u)
        return u + step, low, high, step, steps + 1

    def goes_on(state: tuple) -> Array:
        u, _, _, last, steps = state
        return (steps < MAX_STEPS) & (xp.abs(last) > tolerance * (1 + xp.abs(u)))

    start = xp.clip(xp.zeros_like(low), low, high)  # T = 1
    state = (start, low, high, high - low, xp.asarray(0))
    if xp is jnp:
        return jax.lax.while_loop(goes_on, body, state)[0]
    while goes_on(state):
        state = body(state)
    return state[0]
