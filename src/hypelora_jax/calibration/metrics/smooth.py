"""Smooth calibration error, without bins and with a bandwidth set by the data.

The reflected Gaussian kernel on [0, 1] is the heat kernel, 1 + 2 sum_k exp(-(pi k
sigma)^2 / 2) cos(pi k x) cos(pi k t). Smoothing therefore multiplies the cosine
coefficients, and one transform serves every bandwidth: the cost is linear in examples.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array

GRID = 1 << 16  # cells of the grid of residuals; the error is within 1e-7 of exact
MODES = 1 << 12  # cosines kept; a bandwidth above 5e-4 damps the others to 0
HALVINGS = {8: 40, 4: 26}  # steps of the bisection, by bytes of a float


def smooth_ece(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Smooth calibration error of the top label, 0 to 1.

    It is the integral over t in [0, 1] of |mean of (hit - confidence)
    K_sigma(confidence, t)| with the reflected Gaussian kernel K. The bandwidth sigma is
    the one that equals the integral. This is smECE of Błasiok and Nakkiran, 2023,
    section 3.
    """
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    conf_N, hit_N = arrays.top(probs_NY, label_N)
    return at_fixed_point(coefficients(conf_N, (hit_N - conf_N) * weight_N, weight_N))


def coefficients(conf_N: Array, residual_N: Array, weight_N: Array) -> Array:
    """Cosine coefficients (MODES + 1,) of the residuals, divided by their total weight.

    Args:
      conf_N: confidences, 0 to 1.
      residual_N: hit minus confidence, times weight.
      weight_N: number of examples that a row stands for.
    """
    xp = arrays.namespace(conf_N)
    at_N = conf_N * GRID
    cell_N = xp.clip(xp.floor(at_N), 0, GRID - 1).astype(int)
    part_N = at_N - cell_N.astype(at_N.dtype)
    left, right = residual_N * (1 - part_N), residual_N * part_N
    grid = arrays.grouped(cell_N, left, GRID + 1)
    grid = grid + arrays.grouped(cell_N + 1, right, GRID + 1)
    # a real transform of twice the length gives sum of grid[g] cos(pi k g / GRID)
    wave = xp.fft.rfft(grid, n=2 * GRID).real[: MODES + 1]
    return arrays.share(wave.astype(conf_N.dtype), xp.sum(weight_N))


def at_fixed_point(wave_K: Array) -> Array:
    """Find the smoothed error that equals its bandwidth, by bisection.

    The error falls as the bandwidth grows, so there is one such bandwidth in [0, 1].
    """
    if arrays.namespace(wave_K) is np:
        low, high = 0.0, 1.0
        for _ in range(HALVINGS[8]):
            middle = (low + high) / 2
            above = error(wave_K, middle) > middle
            low, high = (middle, high) if above else (low, middle)
        return error(wave_K, high)

    def halve(
        _: int, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        above = error(wave_K, middle) > middle
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    bounds = jnp.zeros((), wave_K.dtype), jnp.ones((), wave_K.dtype)
    steps = HALVINGS[wave_K.dtype.itemsize]
    return error(wave_K, jax.lax.fori_loop(0, steps, halve, bounds)[1])


def error(wave_K: Array, sigma: Array | float) -> Array:
    """Integrate the absolute value of the residuals smoothed with a bandwidth."""
    xp = arrays.namespace(wave_K)
    k_K = xp.arange(MODES + 1).astype(wave_K.dtype)
    damped_K = wave_K * xp.exp(-xp.square(np.pi * k_K * sigma) / 2)
    # values at t = j / MODES; the ends count half, as in the trapezoidal rule
    value = xp.abs(xp.fft.irfft(damped_K, n=2 * MODES)[: MODES + 1]) * (2 * MODES)
    return ((value[0] + value[-1]) / 2 + xp.sum(value[1:-1])) / MODES
