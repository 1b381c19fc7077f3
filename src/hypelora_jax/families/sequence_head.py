"""Heads that read the first token's state, as Hugging Face's classifiers do."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks.activations import ACTIVATION
from hypelora_jax.families.blocks.dense import NORMAL, wide
from hypelora_jax.families.blocks.masks import dropout
from hypelora_jax.families.family import SequenceLayout
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import maybe
from hypelora_jax.types import Batch, Head, Key, Params


class SequenceHead(nn.Module):
    """Logits of the first token's state by dense, activation, dropout and out.

    RoBERTa also drops entries of the state before the dense layer.
    """

    layout: SequenceLayout
    config: EncoderConfig
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        """Logits (..., Y) of states (..., D)."""
        c = self.config
        if self.layout.input_dropout:
            x = dropout(x, c.head_dropout, maybe(key, "dense"))
        x = ACTIVATION[self.layout.activation](_dense("dense", c.width, x))
        x = dropout(x, c.head_dropout, maybe(key, "out"))
        return _dense("out", self.num_outputs, x)


def _dense(name: str, features: int, x: jax.Array) -> jax.Array:
    return nn.Dense(features, kernel_init=NORMAL, dtype=x.dtype, name=name)(x)


def sequence_head(
    layout: SequenceLayout,
    config: EncoderConfig,
    num_outputs: int,
    *,
    dtype: str = "float32",
) -> Head:
    """Head with `num_outputs` logits (regression: 1), computed in at least float32.

    `apply` takes hidden states (B, T, D) or (T, D) and returns (B, Y) or (Y,); of a
    packed batch with up to P examples in a row, it returns (B P, Y).
    `features` has no dropout; the layer `out` of it gives `apply` without a key.
    """
    if num_outputs < 1:
        raise UserError(f"the head has {num_outputs} outputs; expected at least 1")
    module = SequenceHead(layout, config, num_outputs)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((config.width,)), None)["params"]

    def apply(
        params: Params, hidden_BTD: jax.Array, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        if "first" in batch:  # packed rows: the states (B, P, D) of several examples
            first = hidden_BTD.reshape(-1, config.width)
        else:
            first = hidden_BTD[..., 0, :]
        first = first.astype(wide(dtype))
        return cast(jax.Array, module.apply({"params": params}, first, key))

    def features(params: Params, hidden_BTD: jax.Array) -> jax.Array:
        first = hidden_BTD[..., 0, :].astype(wide(dtype))
        dense = nn.Dense(config.width, dtype=first.dtype)
        out = dense.apply({"params": params["dense"]}, first)
        return ACTIVATION[layout.activation](cast(jax.Array, out))

    return Head(jax.jit(init), apply, features)
