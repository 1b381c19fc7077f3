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

    RoBERTa also drops entries of the state before the dense layer. With `num_outputs`
    0 there is no layer `out`, and the result is what it would read.
    """

    layout: SequenceLayout
    config: EncoderConfig
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        """Logits (..., Y) of states (..., D), or without outputs (..., D)."""
        c = self.config
        if self.layout.input_dropout:
            x = dropout(x, c.head_dropout, maybe(key, "dense"))
        x = ACTIVATION[self.layout.activation](_dense("dense", c.width, x))
        x = dropout(x, c.head_dropout, maybe(key, "out"))
        return _dense("out", self.num_outputs, x) if self.num_outputs else x


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
        first = first_states(hidden_BTD, batch, dtype)
        return cast(jax.Array, module.apply({"params": params}, first, key))

    def features(params: Params, hidden_BTD: jax.Array) -> jax.Array:
        return pooled(layout, config, params, first_states(hidden_BTD, {}, dtype))

    return Head(jax.jit(init), apply, features)


def first_states(hidden_BTD: jax.Array, batch: Batch, dtype: str) -> jax.Array:
    """First token's states (B, D), or (B P, D) of a packed batch; at least float32."""
    if "first" in batch:  # packed rows: the states (B, P, D) of several examples
        first = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    else:
        first = hidden_BTD[..., 0, :]
    return first.astype(wide(dtype))


def pooled(
    layout: SequenceLayout,
    config: EncoderConfig,
    params: Params,
    first: jax.Array,
    key: Key | None = None,
) -> jax.Array:
    """Input (..., D) of a head's last layer, from first tokens' states (..., D).

    `params` has the layer `dense`, which `pooled_init` draws.
    """
    module = SequenceHead(layout, config, 0)
    own = {"params": {"dense": params["dense"]}}
    return cast(jax.Array, module.apply(own, first, key))


def pooled_init(layout: SequenceLayout, config: EncoderConfig, key: Key) -> Params:
    """Draw the layer `dense` of `pooled`."""
    module = SequenceHead(layout, config, 0)
    return module.init(key, jnp.zeros((config.width,)), None)["params"]
