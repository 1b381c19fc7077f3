"""Linen blocks of the encoder. Leading axes are free: (B, T, D) and (T, D) both work.

Keys are arguments (None: no dropout), so that a block is a function of its inputs.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import maybe
from hypelora_jax.types import Key

NORMAL = nn.initializers.normal(0.02)  # initializer_range of all released checkpoints
MASKED = -1e30  # finite: a row with no token at all stays finite, and its gradient too


def wide(dtype: jnp.dtype | str) -> jnp.dtype:
    """At least float32: the dtype of softmax, norms and logits."""
    return jnp.promote_types(dtype, jnp.float32)


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """Inverted dropout; the rate holds to 2^-16.

    Two draws are cut from each random word, since drawing costs more than the rest on
    CPU; an odd last axis draws one word an entry.
    """
    if key is None or rate == 0:
        return x
    *lead, last = x.shape
    halved = last % 2 == 0
    words = jax.random.bits(key, (*lead, last // 2 if halved else last), jnp.uint32)
    if halved:
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(x.shape)
    else:
        bits = (words & 0xFFFF).astype(jnp.uint16)
    dropped = min(max(round(rate * 2**16), 1), 2**16 - 1)
    return jnp.where(bits >= dropped, x * (2**16 / (2**16 - dropped)), 0)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Phi(x). By erf: XLA's erfc is slower on CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATION = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def along_last(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A vector broadcast along the last axis of `like`; rank promotion is explicit."""
    return jnp.broadcast_to(vector, like.shape)


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


class LoraDense(nn.Module):
    """y = x W + b + (dropout(x) A) B: the one place where an adapter is applied."""

    features: int
    dropout: float = 0.0  # on the adapter's input only

    @nn.compact
    def __call__(
        self, x: jax.Array, lora: dict[str, jax.Array] | None, key: Key | None
    ) -> jax.Array:
        """Projection of (..., I) to (..., O); `lora` is {"a": (I, R), "b": (R, O)}."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", NORMAL, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        y = jnp.einsum("...i,io->...o", x, kernel)
        y = y + along_last(bias, y)
        if lora is None:
            return y
        a, b = lora["a"].astype(x.dtype), lora["b"].astype(x.dtype)
        low = jnp.einsum("...i,ir->...r", dropout(x, self.dropout, key), a)
        return y + jnp.einsum("...r,ro->...o", low, b)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    heads: int,
    rate: float,
    key: Key | None,
) -> jax.Array:
    """Softmax attention over tokens where `mask` is True, dropout on probabilities.

    Args:
      q: queries, (..., T, D); each head has K = D / heads entries.
      k: keys, (..., T, D).
      v: values, (..., T, D).
      mask: bool (..., T), True where there is a token.
      heads: H.
      rate: dropout rate of the probabilities.
      key: None switches dropout off.
    """
    split = (*q.shape[:-1], heads, q.shape[-1] // heads)

    def by_head(x: jax.Array) -> jax.Array:  # (..., T, D) to (..., H, T, K)
        return x.reshape(split).swapaxes(-3, -2)

    q, k, v = by_head(q * (1 / math.sqrt(split[-1]))), by_head(k), by_head(v)
    # plain batched products, and dividing after the second one: measured alone on CPU
    # the forward pass takes a quarter of the time of einsum and softmax
    logits = jnp.matmul(q, k.swapaxes(-2, -1), preferred_element_type=wide(q.dtype))
    logits = jnp.where(mask[..., None, None, :], logits, MASKED)
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


class Block(nn.Module):
    """One post-norm Transformer layer, as in BERT and RoBERTa."""

    config: EncoderConfig
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, lora: dict, key: Key | None
    ) -> jax.Array:
        """Next hidden states (..., T, D); `lora` holds this layer's factors."""
        c = self.config

        def project(name: str, features: int, x: jax.Array) -> jax.Array:
            dense = LoraDense(features, self.lora_dropout, name=name)
            return dense(x, lora.get(name), maybe(key, name))

        q, k, v = (project(name, c.width, x) for name in "qkv")
        rate = c.attention_dropout
        attended = attention(q, k, v, mask, c.heads, rate, maybe(key, "attention"))
        y = dropout(project("o", c.width, attended), c.hidden_dropout, maybe(key, "1"))
        x = LayerNorm(c.norm_eps, name="attn_norm")(x + y)
        y = project("down", c.width, ACTIVATION[c.act](project("up", c.ff, x)))
        y = dropout(y, c.hidden_dropout, maybe(key, "2"))
        return LayerNorm(c.norm_eps, name="ff_norm")(x + y)


class Embed(nn.Module):
    """Sum of word, position and type embeddings, normed."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, ids: jax.Array, positions: jax.Array, types: jax.Array
    ) -> jax.Array:
        """Embeddings (..., T, D) of int32 arrays (..., T), in the parameters' dtype."""
        c = self.config

        def table(name: str, rows: int) -> nn.Embed:
            return nn.Embed(rows, c.width, embedding_init=NORMAL, name=name)

        x = table("word", c.vocab)(ids) + table("type", c.type_vocab)(types)
        x = x + table("position", c.max_positions)(positions)
        return LayerNorm(c.norm_eps, name="norm")(x)
