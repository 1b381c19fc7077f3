"""One-vs-rest: several classes from calibrators of one probability.

With two classes, one function of p(class 1) is fitted, and p(class 0) is 1 minus it.
With more classes, one function for each class is fitted, and the results are divided by
their sum (Zadrozny and Elkan, 2002). A row whose results are all 0 becomes uniform.

A class that a row does not have (`arrays.present`) has probability 0 in it, and its
function is fitted without that row.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Problem(NamedTuple):
    """The rows that one of the K functions is fitted on: those that have its class."""

    logp_N: np.ndarray  # log p
    rest_N: np.ndarray  # log (1 - p)
    hit_N: np.ndarray
    share_N: np.ndarray  # sums to 1


def problems(data: Examples) -> Iterator[Problem]:
    """Yield the problem of each of the K functions."""
    logp_NK, rest_NK = log_probs(data.logits_NY)
    first = 1 if logp_NK.shape[1] == 1 else 0
    given_NY = arrays.present(data.logits_NY)
    if first:
        given_NY = given_NY.all(axis=1, keepdims=True)
    for k, given_N in enumerate(given_NY.T):
        hit_N, share_N = data.label_N == k + first, data.share_N
        own = Problem(logp_NK[:, k], rest_NK[:, k], hit_N, share_N)
        if not given_N.all():
            own = _some(own, given_N)
        yield own


def _some(found: Problem, given_N: np.ndarray) -> Problem:
    """Return some rows of a problem; without any, rows for which p is right."""
    if given_N.any():
        own = Problem(*(x[given_N] for x in found))
        return own._replace(share_N=own.share_N / own.share_N.sum())
    p_M = (np.arange(100) + 0.5) / 100
    p_N, hit_N = np.tile(p_M, 2), np.repeat([True, False], 100)
    share_N = np.where(hit_N, p_N, 1 - p_N) / 100
    return Problem(np.log(p_N), np.log1p(-p_N), hit_N, share_N)


def expit(x: Array) -> Array:
    """The logistic function, of numpy or jax arrays."""
    special = jax.scipy.special if isinstance(x, jax.Array) else scipy.special
    return special.expit(x)


def joined(q_NK: Any, logits_NY: Any) -> Any:
    """Probabilities (N, Y) from the K functions' values in [0, 1], and the logits."""
    xp = arrays.namespace(q_NK)
    given_NY = arrays.present(xp.asarray(logits_NY))
    even_NY = given_NY / xp.sum(given_NY, axis=1, keepdims=True).astype(q_NK.dtype)
    if q_NK.shape[1] == 1:
        both_N1 = xp.all(given_NY, axis=1, keepdims=True)
        return xp.where(both_N1, xp.concatenate([1 - q_NK, q_NK], axis=1), even_NY)
    q_NY = xp.where(given_NY, q_NK, 0)
    sum_N1 = xp.sum(q_NY, axis=1, keepdims=True)
    none_N1 = sum_N1 <= 0
    return xp.where(none_N1, even_NY, q_NY / xp.where(none_N1, 1, sum_N1))
