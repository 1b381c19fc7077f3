"""Transformer hyper-network: slots attend to each other (METHOD A.3).

The layers are those of torch.nn.TransformerEncoderLayer: post-norm, ReLU, eps 1e-5, no
final norm and no positions. With generated A and `hyper.outputs=full` there are two
slots per site, and the first half of the slots is for A.
"""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import BlendConfig, HyperConfig
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.factors import Trunk, linear_init, num_sites
from hypelora_jax.hyper.network import input_width, of_trunk
from hypelora_jax.keys import named_key
from hypelora_jax.types import HyperNet, Key, Network, Params


class SlotAttention(nn.Module):
    """Self-attention over slots, with the softmax in at least float32."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x_SD: jax.Array, deterministic: bool) -> jax.Array:
        """Mixed slots (S, D)."""
        slots, width = x_SD.shape
        q, k, v = (
            nn.Dense(width, name=n)(x_SD).reshape(slots, self.heads, -1) for n in "qkv"
        )
        scores_HST = jnp.einsum("shk,thk->hst", q, k) / jnp.sqrt(q.shape[-1]).astype(
            q.dtype
        )
        dtype = jnp.promote_types(scores_HST.dtype, jnp.float32)
        probs = jax.nn.softmax(scores_HST.astype(dtype), axis=-1).astype(v.dtype)
        probs = nn.Dropout(self.dropout)(probs, deterministic=deterministic)
        mixed = jnp.einsum("hst,thk->shk", probs, v).reshape(slots, width)
        return nn.Dense(width, name="o")(mixed)


class SlotLayer(nn.Module):
    """One post-norm encoder layer."""

    heads: int
    ff: int
    dropout: float

    @nn.compact
    def __call__(self, x_SD: jax.Array, deterministic: bool) -> jax.Array:
        """Transformed slots (S, D)."""

        def drop(x):
            return nn.Dropout(self.dropout)(x, deterministic=deterministic)

        mixed = SlotAttention(self.heads, self.dropout, name="attn")(
            x_SD, deterministic
        )
        x = nn.LayerNorm(epsilon=1e-5, name="norm1", use_fast_variance=False)(
            x_SD + drop(mixed)
        )
        h = drop(nn.relu(nn.Dense(self.ff, name="up")(x)))
        h = drop(nn.Dense(x_SD.shape[-1], name="down")(h))
        return nn.LayerNorm(epsilon=1e-5, name="norm2", use_fast_variance=False)(x + h)


class SlotTransformer(nn.Module):
    """Token projection and encoder layers."""

    width: int
    heads: int
    depth: int
    ff: int
    dropout: float

    @nn.compact
    def __call__(self, cond_SC: jax.Array, deterministic: bool) -> jax.Array:
        """Features (S, width)."""
        x = nn.Dense(self.width, name="token_proj")(cond_SC)
        for i in range(self.depth):
            layer = SlotLayer(self.heads, self.ff, self.dropout, name=f"layer{i}")
            x = layer(x, deterministic)
        return x


def _attention_init(key: Key, width: int) -> Params:
    """As torch's MultiheadAttention: Xavier of the joint (3D, D) kernel, biases 0."""
    bound = (6 / (4 * width)) ** 0.5
    params = {
        n: {
            "kernel": jax.random.uniform(
                named_key(key, n), (width, width), jnp.float32, -bound, bound
            ),
            "bias": jnp.zeros((width,)),
        }
        for n in "qkv"
    }
    out = linear_init(named_key(key, "o"), width, width)
    return {**params, "o": {**out, "bias": jnp.zeros((width,))}}


def _layer_init(key: Key, width: int, ff: int) -> Params:
    norm = {"scale": jnp.ones((width,)), "bias": jnp.zeros((width,))}
    return {
        "attn": _attention_init(named_key(key, "attn"), width),
        "norm1": dict(norm),
        "norm2": dict(norm),
        "up": linear_init(named_key(key, "up"), width, ff),
        "down": linear_init(named_key(key, "down"), ff, width),
    }


def trunk(config: HyperConfig, d_in: int) -> Trunk:
    """Transformer trunk; with the reference initialisation all layers start equal."""
    if config.width % config.heads:
        raise UserError(
            f"config.hyper.width is {config.width} and heads is {config.heads}; "
            "expected a width divisible by the number of heads"
        )
    module = SlotTransformer(
        config.width, config.heads, config.depth, config.ff, config.dropout
    )

    def init(key: Key) -> Params:
        same = config.init == "reference"  # torch deep-copies one layer
        params = {
            f"layer{i}": _layer_init(
                named_key(key, "layer" if same else f"layer{i}"),
                config.width,
                config.ff,
            )
            for i in range(config.depth)
        }
        return {
            "token_proj": linear_init(named_key(key, "token_proj"), d_in, config.width),
            **params,
        }

    def apply(params: Params, cond_SC: jax.Array, key: Key | None = None) -> jax.Array:
        rngs = {} if key is None else {"dropout": key}
        out = module.apply({"params": params}, cond_SC, key is None, rngs=rngs)
        return cast(jax.Array, out)

    return Trunk(init, apply, config.width)


def transformer_hyper(
    config: HyperConfig, blending: BlendConfig, sites: Sites, rank: int, cond_width: int
) -> HyperNet:
    """Transformer hyper-network for the given sites."""
    if config.init == "reference" and config.a == "generated":
        if any(s.d_in != s.d_out for s in sites.values()):
            raise UserError(
                "config.hyper.init=reference writes A and B with one head, which "
                "needs square sites; adapt q, k, v, o only, or use hyper.init=zero"
            )
    body = trunk(config, input_width(config, sites, rank, cond_width))
    return of_trunk(body, config, blending, sites, rank, _two_halves(config))


def _two_halves(config: HyperConfig) -> bool:
    """Whether A and B of a site have a slot each; other forms have their own ways."""
    return config.a == "generated" and config.outputs == "full"


def slots(config: HyperConfig, sites: Sites) -> int:
    """S: one slot per site, or two if A and B have a slot each."""
    return num_sites(sites) * (2 if _two_halves(config) else 1)


NETWORK = Network(slots, transformer_hyper)
