"""Dense layers and their helpers; adapters are applied only here.

Keys are arguments (None switches dropout off), so a layer is a function of its inputs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.types import Key

NORMAL = nn.initializers.normal(0.02)  # initializer_range of all released checkpoints


def wide(dtype: jnp.dtype | str) -> jnp.dtype:
    """Widen to at least float32, the dtype of softmax, norms and logits."""
    return jnp.promote_types(dtype, jnp.float32)


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """Inverted dropout; the rate is exact to 2^-16.

    With keys (B,), row b is the same as it would be alone under key b. Each random word
    gives two draws, since drawing costs more than the rest on CPU. An odd last axis
    draws one word per entry.
    """
    if key is None or rate == 0:
        return x
    if key.ndim:
        return jax.vmap(lambda x, key: dropout(x, rate, key))(x, key)
    *lead, last = x.shape
    halved = last % 2 == 0
    words = jax.random.bits(key, (*lead, last // 2 if halved else last), jnp.uint32)
    if halved:
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(x.shape)
    else:
        bits = (words & 0xFFFF).astype(jnp.uint16)
    dropped = min(max(round(rate * 2**16), 1), 2**16 - 1)
    return jnp.where(bits >= dropped, x * (2**16 / (2**16 - dropped)), 0)


def along_last(vector: jax.Array, like: jax.Array) -> jax.Array:
    """Broadcast a vector along the last axis of `like`; rank promotion is explicit."""
    return jnp.broadcast_to(vector, like.shape)


class LoraDense(nn.Module):
    """y = x W + b + (dropout(x) A) B, the only place where an adapter is applied."""

    features: int
    dropout: float = 0.0  # on the adapter's input only

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        lora: dict[str, jax.Array] | None,
        key: Key | None,
        row_B: jax.Array | None = None,
    ) -> jax.Array:
        """Project (..., I) to (..., O).

        `lora` is {"a": (I, R), "b": (R, O)}, or (U, I, R) and (U, R, O) for x (B, T, I)
        with U conditions. `types.Conditions` says which rows take which condition.
        """
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", NORMAL, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        y = jnp.einsum("...i,io->...o", x, kernel)
        y = y + along_last(bias, y)
        if lora is None:
            return y
        a, b = lora["a"].astype(x.dtype), lora["b"].astype(x.dtype)
        x = dropout(x, self.dropout, key)
        if a.ndim == 2:
            low = jnp.einsum("...i,ir->...r", x, a)
            return y + jnp.einsum("...r,ro->...o", low, b)
        return y + _by_condition(x, a, b, row_B)


def _by_condition(
    x_BTI: jax.Array, a_UIR: jax.Array, b_URO: jax.Array, row_B: jax.Array | None
) -> jax.Array:
    """Compute the delta x A B of each row, (B, T, O), with its condition's factors."""
    if row_B is not None:
        low = jnp.einsum("bti,bir->btr", x_BTI, a_UIR[row_B])
        return jnp.einsum("btr,bro->bto", low, b_URO[row_B])
    rows, tokens, width = x_BTI.shape
    x_UNI = x_BTI.reshape(len(a_UIR), -1, width)  # batched products need no gather
    low = jnp.einsum("uni,uir->unr", x_UNI, a_UIR)
    return jnp.einsum("unr,uro->uno", low, b_URO).reshape(rows, tokens, -1)
