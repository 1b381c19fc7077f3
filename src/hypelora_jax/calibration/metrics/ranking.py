"""Predictions in order of confidence, with running sums over that order.

Sorting is done once (`order`). A weight says how many examples a row stands for, so a
bootstrap replica is the same ranking with other weights and needs no second sort.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array


class Ranking(NamedTuple):
    """Entries by ascending confidence; equal ones keep the order of the input."""

    conf: Array  # (E,)
    hit: Array  # (E,) 1 where the confidence was right
    row: Array  # (E,) the example that the entry belongs to and takes its weight from
    first: Array  # (E,) position of the first entry with the same confidence
    last: Array  # (E,) position of the last entry with the same confidence


class Curve(NamedTuple):
    """Running weighted sums (E + 1,): entry i is over the first i entries."""

    weight: Array
    gap: Array  # confidence minus hit
    hit: Array


def order(
    conf_E: Array, hit_E: Array, row_E: Array, by_E: Array | None = None
) -> Ranking:
    """Entries sorted by confidence; pass the stable sort `by_E` if it is known."""
    xp = arrays.namespace(conf_E)
    by_E = xp.argsort(conf_E, stable=True) if by_E is None else by_E
    conf_E = conf_E[by_E]
    at_E, edge = xp.arange(len(conf_E)), xp.ones(1, bool)
    new = conf_E[1:] != conf_E[:-1]
    first_E = _running_max(xp.where(xp.concatenate([edge, new]), at_E, 0))
    # the last entry of a group is the first one counted from the end
    ends_E = xp.concatenate([new, edge])[::-1]
    last_E = len(conf_E) - 1 - _running_max(xp.where(ends_E, at_E, 0))[::-1]
    return Ranking(conf_E, hit_E[by_E], row_E[by_E], first_E, last_E)


def of_top(probs_NY: Array, label_N: Array) -> Ranking:
    """The predicted class of each example, by confidence."""
    conf_N, hit_N = arrays.top(probs_NY, label_N)
    return order(conf_N, hit_N, arrays.namespace(conf_N).arange(len(conf_N)))


def of_class(probs_NY: Array, label_N: Array, y: int) -> Ranking:
    """The probabilities of class y."""
    conf_N = probs_NY[:, y]
    hit_N = (label_N == y).astype(conf_N.dtype)
    return order(conf_N, hit_N, arrays.namespace(conf_N).arange(len(conf_N)))


def curve(entries: Ranking, weight_N: Array) -> Curve:
    """Running sums over a ranking, each entry weighted as its example."""
    xp = arrays.namespace(weight_N)
    weight_E = weight_N[entries.row]
    zero = xp.zeros(1, weight_E.dtype)
    parts = weight_E, (entries.conf - entries.hit) * weight_E, entries.hit * weight_E
    return Curve(*(xp.concatenate([zero, xp.cumsum(x)]) for x in parts))


def at_rank(running: Curve, rank_M: Array) -> Curve:
    """Running sums up to the given ranks, which may divide the weight of an entry."""
    xp = arrays.namespace(running.weight)
    at = xp.searchsorted(running.weight[1:], rank_M, side="left")
    at = xp.minimum(at, len(running.weight) - 2)
    weight = running.weight[at + 1] - running.weight[at]
    part = arrays.share(rank_M - running.weight[at], weight)
    return Curve(*(x[at] + part * (x[at + 1] - x[at]) for x in running))


def _running_max(x: Array) -> Array:
    if arrays.namespace(x) is np:
        return np.maximum.accumulate(x)
    return jax.lax.cummax(jnp.asarray(x))
