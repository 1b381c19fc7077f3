"""Softmax attention over the tokens of a sequence."""

import math

import jax
import jax.numpy as jnp

from hypelora_jax.families.blocks.dense import dropout, wide
from hypelora_jax.types import Key

MASKED = -1e30  # finite, so a row without tokens has finite values and gradients


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    heads: int,
    rate: float,
    key: Key | None,
) -> jax.Array:
    """Softmax attention over tokens where `mask` is True; probabilities have dropout.

    Args:
      q: queries, (..., T, D); each head has K = D / heads entries.
      k: keys, (..., T, D).
      v: values, (..., T, D).
      mask: bool (..., T), True where there is a token, or (..., T, T), where each
        query's own keys are True.
      heads: H.
      rate: dropout rate of the probabilities.
      key: None switches dropout off.
    """
    split = (*q.shape[:-1], heads, q.shape[-1] // heads)

    def by_head(x: jax.Array) -> jax.Array:  # (..., T, D) to (..., H, T, K)
        return x.reshape(split).swapaxes(-3, -2)

    q, k, v = by_head(q * (1 / math.sqrt(split[-1]))), by_head(k), by_head(v)
    # plain batched products, with the division after the second one: measured alone on
    # CPU, the forward pass takes a quarter of the time of einsum and softmax
    logits = jnp.matmul(q, k.swapaxes(-2, -1), preferred_element_type=wide(q.dtype))
    mask = (
        mask[..., None, :, :] if mask.ndim == k.ndim - 1 else mask[..., None, None, :]
    )
    logits = jnp.where(mask, logits, MASKED)
    # the result does not depend on this shift, so its gradient need not be computed
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.matmul(
        dropout(weights, rate, key).astype(v.dtype),
        v,
        preferred_element_type=total.dtype,
    )
    out = (out / total).astype(v.dtype).swapaxes(-3, -2)
    return out.reshape(*split[:-2], heads * split[-1])
