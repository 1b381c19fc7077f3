"""What every metric begins with: an array's namespace, clean rows, the top label."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array: the namespace follows `probs_NY`


def namespace(x: Array) -> ModuleType:
    """Module that computes on `x`: jax.numpy for jax arrays and tracers, else numpy."""
    return jnp if isinstance(x, jax.Array) else np


def clean(
    probs_NY: Array, label_N: Array, weight_N: Array | None
) -> tuple[ModuleType, Array, Array, Array]:
    """Namespace, probabilities, labels and weights; rows of weight 0 hold zeros."""
    xp = namespace(probs_NY)
    probs_NY = xp.asarray(probs_NY)
    probs_NY = probs_NY.astype(xp.promote_types(probs_NY.dtype, xp.float32))
    label_N = xp.asarray(label_N)
    if weight_N is None:
        return xp, probs_NY, label_N, xp.ones(label_N.shape, probs_NY.dtype)
    weight_N = xp.asarray(weight_N).astype(probs_NY.dtype)
    some_N = weight_N > 0
    probs_NY = xp.where(some_N[:, None], probs_NY, xp.zeros_like(probs_NY))
    label_N = xp.where(some_N, label_N, xp.zeros_like(label_N))
    return xp, probs_NY, label_N, weight_N


def onehot(label_N: Array, num_classes: int) -> Array:
    """Whether a class is the label, bool (N, Y)."""
    xp = namespace(label_N)
    return label_N[:, None] == xp.arange(num_classes)[None, :]


def top(probs_NY: Array, label_N: Array) -> tuple[Array, Array]:
    """Confidence and whether it was right; the first class wins a tie."""
    xp = namespace(probs_NY)
    hit_N = xp.argmax(probs_NY, axis=1) == label_N
    return xp.max(probs_NY, axis=1), hit_N.astype(probs_NY.dtype)


def total(x_N: Array, weight_N: Array) -> Array:
    """Weighted sum; what a row of weight 0 holds, NaN too, is ignored."""
    xp = namespace(x_N)
    x_N = xp.where(weight_N > 0, x_N, xp.zeros_like(x_N))
    return xp.sum(x_N * weight_N.astype(x_N.dtype))


def share(part: Array, whole: Array) -> Array:
    """`part / whole`, and 0 where there is no whole."""
    xp = namespace(part)
    some = whole > 0
    return xp.where(some, part / xp.where(some, whole, 1), xp.zeros_like(part))
