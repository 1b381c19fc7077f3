"""BERT and RoBERTa encoders as a `Backbone`: layers stacked on L and scanned."""

from functools import partial

import jax
import jax.numpy as jnp

from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks import Block, Embed, dropout, wide
from hypelora_jax.families.sizes import EncoderConfig, max_tokens
from hypelora_jax.keys import maybe, named_key
from hypelora_jax.sharding.rules import pin_rows
from hypelora_jax.types import Backbone, Batch, Key, Lora, Params

REMAT = ("none", "layer")


def encoder(
    config: EncoderConfig,
    *,
    dtype: str = "float32",
    remat: str = "none",
    lora_dropout: float = 0.0,
) -> Backbone:
    """Encoder whose `apply` takes the `backbone` subtree and a placed, folded adapter.

    Args:
      config: family and sizes.
      dtype: compute dtype of the blocks; softmax and norms take at least float32. The
        hidden states stay in it.
      remat: "layer" recomputes each layer in the backward pass, same values.
      lora_dropout: rate on the adapter's input.

    Raises:
      UserError: an unknown `remat`, or (when applied) more tokens than positions.
    """
    if remat not in REMAT:
        raise UserError(f"remat is {remat!r}; wanted one of {', '.join(REMAT)}")
    block = Block(config, lora_dropout)

    def layers(params, lora, batch, key, keep):
        x = _embedded(config, params["embed"], batch).astype(dtype)
        x = pin_rows(dropout(x, config.hidden_dropout, maybe(key, "embed")))
        layers_key = maybe(key, "layers")

        def body(x, row):
            params, lora, index = row
            at = None if key is None else jax.random.fold_in(layers_key, index)
            params = _cast(params, dtype)
            x = block.apply({"params": params}, pin_rows(x), batch["mask"], lora, at)
            x = pin_rows(x)
            return x, (x if keep else None)

        if remat == "layer":  # inside a scan nothing is there to be merged by CSE
            body = jax.checkpoint(body, prevent_cse=False)
        rows = params["layers"], lora, jnp.arange(config.layers)
        return x, *jax.lax.scan(body, x, rows)

    def apply(
        params: Params, lora: Lora, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        return layers(params, lora, batch, key, keep=False)[1]

    def trace(
        params: Params, lora: Lora, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        first, _, rest = layers(params, lora, batch, key, keep=True)
        return jnp.concatenate([first[None], rest])

    init = jax.jit(partial(_init, config))  # eagerly it would compile op by op
    return Backbone(init, apply, trace)


def _embedded(config: EncoderConfig, params: Params, batch: Batch) -> jax.Array:
    ids = batch["ids"]
    _check_length(config, ids.shape[-1])
    where = _positions(config, ids), _types(config, batch)
    return Embed(config).apply({"params": params}, ids, *where)


def _check_length(config: EncoderConfig, tokens: int) -> None:
    if tokens > max_tokens(config):
        raise UserError(
            f"a sequence of {tokens} tokens; this model has positions for"
            f" {max_tokens(config)}: set data.max_length to that or less"
        )


def _positions(config: EncoderConfig, ids: jax.Array) -> jax.Array:
    """Rows of the position table: RoBERTa counts tokens from pad_id + 1, pads stay."""
    if config.family == "bert":
        tokens = jnp.arange(ids.shape[-1], dtype=ids.dtype)
        return jnp.broadcast_to(tokens, ids.shape)
    token = (ids != config.pad_id).astype(ids.dtype)
    return jnp.cumsum(token, axis=-1, dtype=ids.dtype) * token + config.pad_id


def _types(config: EncoderConfig, batch: Batch) -> jax.Array:
    return batch["types"] if config.family == "bert" else jnp.zeros_like(batch["ids"])


def _cast(params: Params, dtype: str) -> Params:
    """One layer's parameters as the block computes with them; norms stay wide."""
    to = {name: wide(dtype) if "norm" in name else dtype for name in params}
    return {
        name: {leaf: x.astype(to[name]) for leaf, x in leaves.items()}
        for name, leaves in params.items()
    }


def _init(config: EncoderConfig, key: Key) -> Params:
    """Hugging Face's init: normal(0.02), biases 0, norms 1, pad rows 0; float32."""
    ids = jnp.zeros((1,), jnp.int32)
    embed = Embed(config).init(named_key(key, "embed"), ids, ids, ids)["params"]
    padded = ("word", "position") if config.family == "roberta" else ("word",)
    for name in padded:
        table = embed[name]["embedding"]
        embed[name] = {"embedding": table.at[config.pad_id].set(0)}

    def one(key: Key) -> Params:
        x, mask = jnp.zeros((1, config.width)), jnp.ones((1,), bool)
        return Block(config).init(key, x, mask, {}, None)["params"]

    keys = jax.random.split(named_key(key, "layers"), config.layers)
    return {"embed": embed, "layers": jax.vmap(one)(keys)}
