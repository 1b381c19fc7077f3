"""Kernel calibration error of all class probabilities together, without bins."""

from typing import NamedTuple

import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array

BLOCK = 16  # examples in a block; pairs are formed within a block only
BANDWIDTH = 0.2  # of the kernel, in total variation distance


class Blocks(NamedTuple):
    """Sums over the pairs of each block, (K,)."""

    value: Array
    pairs: Array


def kernel_ce(
    probs_NY: Array,
    label_N: Array,
    weight_N: Array | None = None,
    block: int = BLOCK,
    bandwidth: float = BANDWIDTH,
) -> Array:
    """Squared kernel calibration error; it is unbiased, so it may fall below 0.

    It is the mean of k(p_i, p_j) (e_i - p_i) . (e_j - p_j) over pairs of examples i, j
    of the same block, with one-hot labels e and k(p, q) = exp(-TV(p, q) / bandwidth).
    This SKCE (Widmann et al., 2019, table 1) lies between their linear (blocks of two)
    and quadratic (one block) estimators. The cost is linear in the number of examples.

    Args:
      probs_NY: probabilities.
      label_N: classes.
      weight_N: 0 for padding rows; every other weight counts once.
      block: examples in a block, at least 2. Blocks are drawn with a fixed seed, so
        that a sorted file does no harm. The result depends on the order of the
        examples, within its noise.
      bandwidth: above 0; the same for all runs, so that their numbers are comparable.
    """
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    drawn = blocks(*rows, block, bandwidth)
    xp = arrays.namespace(drawn.value)
    return arrays.share(xp.sum(drawn.value), xp.sum(drawn.pairs))


def blocks(
    probs_NY: Array,
    label_N: Array,
    weight_N: Array,
    block: int = BLOCK,
    bandwidth: float = BANDWIDTH,
) -> Blocks:
    """Sums over the pairs of each block; a row of weight 0 is in no pair."""
    xp = arrays.namespace(probs_NY)
    n, num_classes = probs_NY.shape
    number = -(-n // block)
    order_N, pad = _shuffled(weight_N), number * block - n
    rest_NY = arrays.onehot(label_N, num_classes).astype(probs_NY.dtype) - probs_NY

    def split(x: Array) -> Array:
        x = xp.concatenate([x[order_N], xp.zeros((pad, *x.shape[1:]), x.dtype)])
        return x.reshape(number, block, *x.shape[1:]).swapaxes(0, 1)

    p, rest = split(probs_NY), split(rest_NY)
    some = split((weight_N > 0).astype(probs_NY.dtype))
    value, pairs = xp.zeros(number, p.dtype), xp.zeros(number, p.dtype)
    for apart in range(1, block):
        distance = xp.sum(xp.abs(p[apart:] - p[:-apart]), axis=-1) / 2
        alike = xp.exp(-distance / bandwidth) * some[apart:] * some[:-apart]
        value = value + xp.sum(
            alike * xp.sum(rest[apart:] * rest[:-apart], axis=-1), axis=0
        )
        pairs = pairs + xp.sum(some[apart:] * some[:-apart], axis=0)
    return Blocks(value, pairs)


def _shuffled(weight_N: Array) -> Array:
    """Indices of the examples in a random order, with padding rows last.

    The i-th example that is not padding takes the i-th number of a fixed stream, so
    padding rows change neither the order nor the blocks.
    """
    xp = arrays.namespace(weight_N)
    draw_N = xp.asarray(np.random.default_rng(0).random(len(weight_N), np.float32))
    some_N = weight_N > 0
    rank_N = xp.maximum(xp.cumsum(some_N) - 1, 0)
    return xp.argsort(xp.where(some_N, draw_N[rank_N], np.inf), stable=True)
