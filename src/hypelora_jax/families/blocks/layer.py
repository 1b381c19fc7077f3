"""Linen blocks of the encoders: their norm, one layer, and the embeddings.

Leading axes are free: (B, T, D) and (T, D) both work.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.families.blocks.activations import ACTIVATION
from hypelora_jax.families.blocks.attention import attention
from hypelora_jax.families.blocks.dense import (
    NORMAL,
    LoraDense,
    along_last,
    dropout,
    wide,
)
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import maybe
from hypelora_jax.types import Key


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in at least float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised x, in x's dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        y = x.astype(wide(x.dtype))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * along_last(scale, y) + along_last(bias, y)).astype(x.dtype)


class Block(nn.Module):
    """One post-norm Transformer layer, as in BERT and RoBERTa."""

    config: EncoderConfig
    lora_dropout: float = 0.0
    drops_attended: bool = True  # whether dropout follows the projection `o`

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        lora: dict,
        key: Key | None,
        row_B: jax.Array | None = None,
    ) -> jax.Array:
        """Next hidden states (..., T, D); `lora` holds this layer's factors."""
        c = self.config

        def project(name: str, features: int, x: jax.Array) -> jax.Array:
            dense = LoraDense(features, self.lora_dropout, name=name)
            return dense(x, lora.get(name), maybe(key, name), row_B)

        q, k, v = (project(name, c.width, x) for name in "qkv")
        rate = c.attention_dropout
        attended = attention(q, k, v, mask, c.heads, rate, maybe(key, "attention"))
        y = project("o", c.width, attended)
        if self.drops_attended:
            y = dropout(y, c.hidden_dropout, maybe(key, "1"))
        x = LayerNorm(c.norm_eps, name="attn_norm")(x + y)
        y = project("down", c.width, ACTIVATION[c.act](project("up", c.ff, x)))
        y = dropout(y, c.hidden_dropout, maybe(key, "2"))
        return LayerNorm(c.norm_eps, name="ff_norm")(x + y)


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
