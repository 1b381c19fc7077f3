"""Dense layers and their helpers; adapters are applied only here.

Keys are arguments (None switches dropout off), so a layer is a function of its inputs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.families.blocks.masks import dropout_rows
from hypelora_jax.types import Key

NORMAL = nn.initializers.normal(0.02)  # initializer_range of all released checkpoints


def wide(dtype: jnp.dtype | str) -> jnp.dtype:
    """Widen to at least float32, the dtype of softmax, norms and logits."""
    return jnp.promote_types(dtype, jnp.float32)


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
        rows: tuple[int, ...],
        lora: dict[str, jax.Array] | None,
        key: Key | None,
        row_B: jax.Array | None = None,
    ) -> jax.Array:
        """Project (N, I) to (N, O).

        N are the tokens of `rows`, (B, T) or (T,). `lora` is {"a": (I, R), "b": (R, O)}
        or, with U conditions, (U, I, R) and (U, R, O). `types.Conditions` says which
        rows take which condition.
        """
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", NORMAL, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        y = jnp.einsum("ni,io->no", x, kernel)
        y = y + along_last(bias, y)
        if lora is None:
            return y
        a, b = lora["a"].astype(x.dtype), lora["b"].astype(x.dtype)
        x = dropout_rows(x, rows, self.dropout, key)
        if a.ndim == 2:
            low = jnp.einsum("ni,ir->nr", x, a)
            return y + jnp.einsum("nr,ro->no", low, b)
        delta = _by_condition(x.reshape(*rows, -1), a, b, row_B)
        return y + delta.reshape(y.shape)


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
