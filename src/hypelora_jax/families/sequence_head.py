"""Classification and regression heads of RoBERTa and BERT as a `Head`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks import NORMAL, dropout, wide
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import maybe
from hypelora_jax.types import Head, Key, Params


class _SequenceHead(nn.Module):
    """Logits of the first token's state, as in Hugging Face.

    RoBERTa: dropout, dense, tanh, dropout, out_proj; BERT: pooler dense, tanh, dropout,
    classifier.
    """

    config: EncoderConfig
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        c = self.config
        if c.family == "roberta":
            x = dropout(x, c.head_dropout, maybe(key, "dense"))
        x = jnp.tanh(_dense("dense", c.width, x))
        x = dropout(x, c.head_dropout, maybe(key, "out"))
        return _dense("out", self.num_outputs, x)


def _dense(name: str, features: int, x: jax.Array) -> jax.Array:
    return nn.Dense(features, kernel_init=NORMAL, dtype=x.dtype, name=name)(x)


def head(config: EncoderConfig, num_outputs: int, *, dtype: str = "float32") -> Head:
    """Head with `num_outputs` logits (regression: 1), computed in at least float32.

    `apply` takes hidden states (B, T, D) or (T, D) and gives (B, Y) or (Y,); `features`
    has no dropout, and `out` of it is `apply` without a key.
    """
    if num_outputs < 1:
        raise UserError(f"a head with {num_outputs} outputs; wanted 1 or more")
    module = _SequenceHead(config, num_outputs)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((config.width,)), None)["params"]

    def apply(params: Params, hidden: jax.Array, key: Key | None = None) -> jax.Array:
        first = hidden[..., 0, :].astype(wide(dtype))
        return module.apply({"params": params}, first, key)

    def features(params: Params, hidden: jax.Array) -> jax.Array:
        first = hidden[..., 0, :].astype(wide(dtype))
        dense = nn.Dense(config.width, dtype=first.dtype)
        return jnp.tanh(dense.apply({"params": params["dense"]}, first))

    return Head(jax.jit(init), apply, features)
