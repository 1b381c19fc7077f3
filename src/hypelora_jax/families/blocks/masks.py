"""Dropout, the only place where masks are drawn."""

from functools import partial

import jax
import jax.numpy as jnp

from hypelora_jax.types import Key


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """Inverted dropout (Srivastava et al. 2014): zero a share `rate`, scale the rest.

    With keys (B,), row b is the same as it would be alone under key b. The backward
    pass draws the mask again, so none is stored. The rate is exact to 2^-32, and to
    2^-16 with threefry. `keys.mask_key` says what draws.
    """
    if key is None or rate == 0:
        return x
    if key.ndim:
        return jax.vmap(lambda x, key: dropout(x, rate, key))(x, key)
    return _dropped(rate, x, key)


def dropout_rows(
    x: jax.Array, rows: tuple[int, ...], rate: float, key: Key | None
) -> jax.Array:
    """Drop entries of x (N, D), the tokens of `rows` (B, T) or (T,), row by row."""
    if key is None or not key.ndim:
        return dropout(x, rate, key)
    return dropout(x.reshape(*rows, -1), rate, key).reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropped(rate: float, x: jax.Array, key: Key) -> jax.Array:
    drawn, steps = _draw(key, x.shape)
    dropped = min(max(round(rate * steps), 1), steps - 1)
    kept = drawn >= drawn.dtype.type(dropped)
    return jnp.where(kept, x * (steps / (steps - dropped)), 0)


def _forward(rate: float, x: jax.Array, key: Key) -> tuple[jax.Array, Key]:
    return _dropped(rate, x, key), key


def _backward(rate: float, key: Key, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _dropped(rate, gradient, key), None  # linear in x, with the same mask


_dropped.defvjp(_forward, _backward)


def _draw(key: Key, shape: tuple[int, ...]) -> tuple[jax.Array, int]:
    """Draw uniform integers, and return also how many different ones there are."""
    if jax.random.key_impl(key) != "threefry2x32" or not shape:
        return jax.random.bits(key, shape, jnp.uint32), 2**32
    # threefry costs more than the rest of dropout: each word gives two draws, or one
    # where the last axis is odd
    *lead, last = shape
    if last % 2:
        words = jax.random.bits(key, shape, jnp.uint32)
        return (words & 0xFFFF).astype(jnp.uint16), 2**16
    words = jax.random.bits(key, (*lead, last // 2), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(shape), 2**16
