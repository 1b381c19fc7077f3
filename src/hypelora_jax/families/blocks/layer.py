"""Linen blocks of the encoders: their norm, one layer, and the embeddings.

Leading axes are free: (B, T, D) and (T, D) both work.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.families.blocks.activations import ACTIVATION
from hypelora_jax.families.blocks.attention import attention
from hypelora_jax.families.blocks.dense import (
    NORMAL,
    LoraDense,
    along_last,
    wide,
)
from hypelora_jax.families.blocks.masks import dropout_rows
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import maybe
from hypelora_jax.types import Key


class LayerNorm(nn.Module):
    """Layer norm over the last axis (Ba et al. 2016), in at least float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised x, in x's dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return _normed(self.eps, x, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normed(eps: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return _norm(eps, x, scale, bias)[0]


def _norm(
    eps: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple]:
    y = x.astype(wide(x.dtype))
    mean = jnp.mean(y, axis=-1, keepdims=True)
    y = y - mean
    std = jnp.sqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    out = y / std * along_last(scale, y) + along_last(bias, y)
    return out.astype(x.dtype), (x, mean, std, scale)


def _norm_backward(eps: float, saved: tuple, gradient: jax.Array) -> tuple:
    """Pull back with two means a row; the derivative of the parts takes five passes.

    Dividing by `std` is no slower than multiplying, and XLA never computes a quotient
    twice. A product it would compute again wherever it is used, and with it the
    gradients of all layers above.
    """
    x, mean, std, scale = saved
    gradient = gradient.astype(mean.dtype)
    normed = (x.astype(mean.dtype) - mean) / std
    inner = gradient * along_last(scale, gradient)
    along = jnp.mean(inner * normed, axis=-1, keepdims=True)
    divisor = jnp.where(x == x, std, jnp.nan)
    d_x = (inner - jnp.mean(inner, axis=-1, keepdims=True) - normed * along) / divisor
    rows = tuple(range(x.ndim - 1))
    d_scale = jnp.sum(gradient * normed, axis=rows).astype(scale.dtype)
    d_bias = jnp.sum(gradient, axis=rows).astype(scale.dtype)
    return d_x.astype(x.dtype), d_scale, d_bias


_normed.defvjp(_norm, _norm_backward)


class Block(nn.Module):
    """One post-norm Transformer layer, as in BERT and RoBERTa."""

    config: EncoderConfig
    lora_dropout: float = 0.0
    drops_attended: bool = True  # whether dropout follows the projection `o`
    attention: str = "xla"  # config.model.attention

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        lora: dict,
        key: Key | None,
        row_B: jax.Array | None = None,
        at_BP: jax.Array | None = None,
    ) -> jax.Array:
        """Next hidden states (..., T, D); `lora` holds this layer's factors.

        `mask` is as in `attention`.
        With positions `at_BP` only their states are computed, (B, P, D). They attend to
        all tokens.
        """
        c, tokens = self.config, x.shape[:-1]
        own = x
        if at_BP is not None:
            own = jnp.take_along_axis(x, at_BP[..., None], axis=-2)
            if mask.ndim == x.ndim:  # each token has its own
                mask = jnp.take_along_axis(mask, at_BP[..., None], axis=-2)
        queries = own.shape[:-1]

        def project(
            name: str, features: int, x: jax.Array, rows: tuple = queries
        ) -> jax.Array:
            dense = LoraDense(features, self.lora_dropout, name=name)
            return dense(x, rows, lora.get(name), maybe(key, name), row_B)

        def drop(x: jax.Array, name: str) -> jax.Array:
            return dropout_rows(x, queries, c.hidden_dropout, maybe(key, name))

        # Tokens of all rows are one axis outside attention: a reshape between two
        # elementwise operations keeps XLA from vectorising them on CPU.
        x, own = x.reshape(-1, x.shape[-1]), own.reshape(-1, x.shape[-1])
        q = project("q", c.width, own).reshape(*queries, -1)
        k, v = (project(n, c.width, x, tokens).reshape(*tokens, -1) for n in "kv")
        rate = c.attention_dropout
        own_key = maybe(key, "attention")
        attended = attention(q, k, v, mask, c.heads, rate, own_key, self.attention)
        y = project("o", c.width, attended.reshape(own.shape))
        if self.drops_attended:
            y = drop(y, "1")
        x = LayerNorm(c.norm_eps, name="attn_norm")(own + y)
        y = project("down", c.width, ACTIVATION[c.act](project("up", c.ff, x)))
        x = LayerNorm(c.norm_eps, name="ff_norm")(x + drop(y, "2"))
        return x.reshape(*queries, -1)


class Embed(nn.Module):
    """Sum of word, position and (where the model has them) type embeddings, normed."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, ids: jax.Array, positions: jax.Array, types: jax.Array
    ) -> jax.Array:
        """Embeddings (..., T, D) of int32 arrays (..., T), in the parameters' dtype."""
        c = self.config

        def table(name: str, rows: int) -> nn.Embed:
            return nn.Embed(rows, c.width, embedding_init=NORMAL, name=name)

        x = table("word", c.vocab)(ids)
        if c.type_vocab:
            x = x + table("type", c.type_vocab)(types)
        x = x + table("position", c.max_positions)(positions)
        return LayerNorm(c.norm_eps, name="norm")(x)
