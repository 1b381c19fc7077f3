"""Canonical factors of a delta, and their z-scores over a set of adapters.

The factors of a delta are not unique: A G and G^-1 B have the same one. Canonical
factors are A = U sqrt(S) and B = sqrt(S) V^T of the singular value decomposition, with
singular values in descending order and the largest entry of each column of U positive.
They depend on the delta only, unless singular values or those entries are equal.

The decomposition is that of an r x r core, so no delta is built: with A = Q_a R_a and
B^T = Q_b R_b, A B = Q_a (R_a R_b^T) Q_b^T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypelora_jax.adapters.gram import PRECISE
from hypelora_jax.types import Lora


def canonical(lora: Lora) -> Lora:
    """Canonical factors, (..., I, R) and (..., R, O), of the same deltas and shapes.

    Columns beyond the rank of a delta are zero. Targets are made with it before
    training: its gradient is not defined where singular values are equal.
    """
    return {m: _canonical(f["a"], f["b"]) for m, f in lora.items()}


def _canonical(a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    rank = a.shape[-1]
    left, core_a = jnp.linalg.qr(a)
    right, core_b = jnp.linalg.qr(jnp.swapaxes(b, -1, -2))
    core = jnp.einsum("...pr,...qr->...pq", core_a, core_b, precision=PRECISE)
    u, s, v = jnp.linalg.svd(core, full_matrices=False)
    # a singular value that is zero up to rounding would leave its square root of noise
    least = s[..., :1] * (jnp.finfo(dtype).eps * max(a.shape[-2], b.shape[-1]))
    root = jnp.sqrt(jnp.where(s > least, s, 0))
    u = jnp.einsum("...ip,...pk->...ik", left, u, precision=PRECISE)
    v = jnp.einsum("...oq,...kq->...ko", right, v, precision=PRECISE)
    top = jnp.argmax(jnp.abs(u), axis=-2, keepdims=True)
    largest = jnp.take_along_axis(u, top, axis=-2)  # of each column, (..., 1, K)
    sign = jnp.where(largest < 0, -1, 1).astype(dtype)
    a = u * (sign * root[..., None, :])
    b = v * jnp.swapaxes(sign * root[..., None, :], -1, -2)
    # the rank R may exceed the widths I and O
    more = [(0, 0)] * (a.ndim - 1) + [(0, rank - a.shape[-1])]
    return {"a": jnp.pad(a, more), "b": jnp.pad(b, [*more[:-2], more[-1], (0, 0)])}


class Standard(NamedTuple):
    """Mean and deviation of each entry of the factors, a_LIR and b_LRO."""

    mean: Lora
    deviation: Lora


def standard(adapters: Lora, floor: float = 1e-3) -> Standard:
    """Mean and deviation of each entry over U adapters, a_LUIR and b_LURO.

    The deviation is that of the population. It is at least `floor` times the root mean
    square of the deviations of its layer's factor, so that an entry that hardly varies
    is not blown up, and 1 if no entry of the factor varies.
    """
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=1), adapters)

    def deviation(x: jax.Array) -> jax.Array:
        own = jnp.std(x, axis=1)
        size = jnp.sqrt(jnp.mean(jnp.square(own), axis=(-2, -1), keepdims=True))
        return jnp.where(size > 0, jnp.maximum(own, floor * size), 1)

    return Standard(mean, jax.tree.map(deviation, adapters))


def standardised(adapters: Lora, of: Standard) -> Lora:
    """Z-scores of the entries of U adapters, a_LUIR and b_LURO."""
    return jax.tree.map(
        lambda x, m, d: (x - m[:, None]) / d[:, None], adapters, of.mean, of.deviation
    )


def factors_of(scores: Lora, of: Standard) -> Lora:
    """Factors a_LUIR and b_LURO of z-scores: the inverse of `standardised`."""
    return jax.tree.map(
        lambda x, m, d: x * d[:, None] + m[:, None], scores, of.mean, of.deviation
    )
