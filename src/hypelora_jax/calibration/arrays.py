"""Helpers shared by metrics, calibrators and losses, of numpy and of jax arrays."""

from types import ModuleType
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.types import ABSENT

Array = np.ndarray | jax.Array
A = TypeVar("A", bound=Array)


def namespace(x: Array) -> ModuleType:
    """Return jax.numpy for jax arrays and tracers, and numpy for everything else."""
    return jnp if isinstance(x, jax.Array) else np


def clean(
    probs_NY: Array, label_N: Array, weight_N: Array | None
) -> tuple[ModuleType, Array, Array, Array]:
    """Convert the arguments of a metric and clear the padding rows.

    Returns:
      The namespace, the probabilities in at least float32, the labels and the weights.
      Rows of weight 0 are set to zero, so that NaN in padding cannot spread.
    """
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


def present(logits_NY: A) -> A:
    """Whether each row has each class, bool (N, Y): its logit is not ABSENT.

    That is less than 100,000 below the largest logit of its row, so each row has a
    class, and the logits may have been divided by a temperature of up to 10,000. A row
    with NaN has all classes, and stays NaN.
    """
    top_N1 = namespace(logits_NY).max(logits_NY, axis=-1, keepdims=True)
    return cast(A, ~(logits_NY < top_N1 + ABSENT / 1e4))


def onehot(label_N: Array, num_classes: int) -> Array:
    """One-hot labels, bool (N, Y)."""
    xp = namespace(label_N)
    return label_N[:, None] == xp.arange(num_classes)[None, :]


def top(probs_NY: Array, label_N: Array) -> tuple[Array, Array]:
    """Return the confidence of the predicted class, and 1 where it is the label.

    The first of several equally probable classes is predicted.
    """
    xp = namespace(probs_NY)
    hit_N = xp.argmax(probs_NY, axis=1) == label_N
    return xp.max(probs_NY, axis=1), hit_N.astype(probs_NY.dtype)


def total(x_N: A, weight_N: Array) -> A:
    """Weighted sum; rows of weight 0 are ignored, even if they contain NaN."""
    xp = namespace(x_N)
    x_N = xp.where(weight_N > 0, x_N, xp.zeros_like(x_N))
    return xp.sum(x_N * weight_N.astype(x_N.dtype))


def grouped(group_N: Array, x_N: Array, groups: int) -> Array:
    """Sum of x over the rows of each group 0, 1, ..."""
    if namespace(x_N) is np:
        return np.bincount(group_N, x_N, minlength=groups)
    return jnp.bincount(group_N, x_N, length=groups)


def share(part: A, whole: Array) -> A:
    """`part / whole`, and 0 where `whole` is 0."""
    xp = namespace(part)
    some = whole > 0
    return xp.where(some, part / xp.where(some, whole, 1), xp.zeros_like(part))
