"""Softmax attention over the tokens of a sequence."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hypelora_jax.families.blocks.dense import wide
from hypelora_jax.families.blocks.fused_attention import Call, choice, fused
from hypelora_jax.families.blocks.masks import dropout
from hypelora_jax.sharding.rules import place_of_trace
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
    asked: str = "xla",
) -> jax.Array:
    """Softmax attention over tokens where `mask` is True; probabilities have dropout.

    Args:
      q: queries, (..., P, D), of P positions; each head has K = D / heads entries.
      k: keys, (..., T, D).
      v: values, (..., T, D).
      mask: bool (..., T), True where there is a token, or (..., P, T), True where a
        query sees a token.
      heads: H.
      rate: dropout rate of the probabilities.
      key: None switches dropout off.
      asked: config.model.attention; `fused_attention.choice` says what it means.

    Returns:
      What each query attends to, (..., P, D).

    Raises:
      UserError: `asked` is fused, and no kernel can compute this.
    """
    width, scale = q.shape[-1] // heads, 1 / math.sqrt(q.shape[-1] // heads)
    if asked != "xla":
        by_query, tokens = mask.ndim == k.ndim, k.shape[-2]
        rows, dropped = math.prod(q.shape[:-2]), rate if key is not None else 0.0
        call = Call(
            str(q.dtype), rows, q.shape[-2], tokens, heads, width, dropped, by_query
        )
        kernel = choice(asked, place_of_trace(), call)
        if kernel != "xla":
            return fused(kernel, q * scale, k, v, mask, heads)

    def by_head(x: jax.Array) -> jax.Array:  # (..., T, D) to (..., H, T, K)
        return x.reshape(*x.shape[:-1], heads, width).swapaxes(-3, -2)

    if mask.ndim < k.ndim:
        mask = mask[..., None, :]
    q, k, v = by_head(q * scale), by_head(k), by_head(v)
    out = _attend(rate, q, k, v, mask[..., None, :, :], key).swapaxes(-3, -2)
    return out.reshape(*out.shape[:-2], heads * width)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    rate: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    key: Key | None,
) -> jax.Array:
    """Attend with scaled queries (..., H, P, K); `mask` broadcasts to (..., H, P, T).

    It has a derivative of its own because that of its parts keeps three arrays of
    (..., H, P, T) for the backward pass. This one keeps one, and draws the mask of
    dropout again.
    """
    return _forward(rate, q, k, v, mask, key)[0]


def _forward(
    rate: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    key: Key | None,
) -> tuple[jax.Array, Any]:
    # plain batched products, with the division after the second one: measured alone on
    # CPU, the forward pass takes a quarter of the time of einsum and softmax
    logits = jnp.matmul(q, k.swapaxes(-2, -1), preferred_element_type=wide(q.dtype))
    logits = jnp.where(mask, logits, MASKED)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    kept = dropout(weights, rate, key).astype(v.dtype)
    out = jnp.matmul(kept, v, preferred_element_type=total.dtype) / total
    return out.astype(v.dtype), (q, k, v, mask, key, weights, total, out)


def _backward(rate: float, saved: Any, gradient: jax.Array) -> tuple:
    """Pull the gradient back; with w the weights and s their sum, out = drop(w) v / s.

    So d out / d logits = w (drop(g v') - <g, out>) / s, with the same dropout mask.
    """
    q, k, v, mask, key, weights, total, out = saved
    share = gradient.astype(total.dtype) / total
    common = jnp.sum(share * out, axis=-1, keepdims=True)
    kept = dropout(weights, rate, key).astype(v.dtype)
    share = share.astype(v.dtype)
    d_v = jnp.matmul(kept.swapaxes(-2, -1), share)
    d_kept = jnp.matmul(share, v.swapaxes(-2, -1), preferred_element_type=total.dtype)
    d_logits = weights * (dropout(d_kept, rate, key) - common)
    # a row without tokens has weights, but its logits are constant
    d_logits = jnp.where(mask, d_logits, 0).astype(q.dtype)
    d_q = jnp.matmul(d_logits, k)
    return d_q, jnp.matmul(d_logits.swapaxes(-2, -1), q), d_v, None, None


_attend.defvjp(_forward, _backward)
