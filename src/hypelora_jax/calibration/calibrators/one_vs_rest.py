"""One-vs-rest: several classes from calibrators of one probability.

With two classes, one function of p(class 1) is fitted, and p(class 0) is 1 minus it.
With more classes, one function for each class is fitted, and the results are divided by
their sum (Zadrozny and Elkan, 2002). A row whose results are all 0 becomes uniform.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.calibrators.examples import Examples

# Probabilities that differ by at most this count as equal, because the same logits
# shifted by different constants give probabilities that differ by a few 1e-16.
SAME = 1e-12


def log_probs(logits_NY: Any) -> tuple[Any, Any]:
    """Log of p and of 1 - p, (N, K): K is 1 (class 1 only) for two classes, else Y.

    Both are exact even if p rounds to 1, because 1 - p sums the other classes then.
    """
    xp = arrays.namespace(logits_NY)
    special = jax.scipy.special if xp is jnp else scipy.special
    logits_NY = xp.asarray(logits_NY)
    z_NY = logits_NY.astype(xp.promote_types(logits_NY.dtype, xp.float32))
    logp_NY = z_NY - special.logsumexp(z_NY, axis=1, keepdims=True)
    if logits_NY.shape[1] == 2:
        return logp_NY[:, 1:], logp_NY[:, :1]
    is_top_NY = xp.argmax(logp_NY, axis=1)[:, None] == xp.arange(logp_NY.shape[1])[None]
    rest_NY = xp.where(is_top_NY, -np.inf, logp_NY)
    rest_N1 = special.logsumexp(rest_NY, axis=1, keepdims=True)
    half_NY = xp.where(is_top_NY, -1.0, logp_NY)  # only the top class has p > 1/2
    return logp_NY, xp.where(is_top_NY, rest_N1, xp.log1p(-xp.exp(half_NY)))


def problems(data: Examples) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield log p, log (1 - p) and hits (N,) of each of the K functions to fit."""
    logp_NK, rest_NK = log_probs(data.logits_NY)
    first = 1 if logp_NK.shape[1] == 1 else 0
    for k, (logp_N, rest_N) in enumerate(zip(logp_NK.T, rest_NK.T, strict=True)):
        yield logp_N, rest_N, data.label_N == k + first


def expit(x: Array) -> Array:
    """The logistic function, of numpy or jax arrays."""
    special = jax.scipy.special if isinstance(x, jax.Array) else scipy.special
    return special.expit(x)


def joined(q_NK: Any) -> Any:
    """Probabilities (N, Y) from the K functions' values in [0, 1]."""
    xp = arrays.namespace(q_NK)
    if q_NK.shape[1] == 1:
        return xp.concatenate([1 - q_NK, q_NK], axis=1)
    sum_N1 = xp.sum(q_NK, axis=1, keepdims=True)
    none_N1 = sum_N1 <= 0
    uniform = xp.full_like(q_NK, 1 / q_NK.shape[1])
    return xp.where(none_N1, uniform, q_NK / xp.where(none_N1, 1, sum_N1))
