"""Post-norm encoders as a `Backbone`: layers stacked on L and scanned.

A `Layout` says what differs between the families that share it.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from hypelora_jax.errors import UserError, choose
from hypelora_jax.families.blocks.dense import wide
from hypelora_jax.families.blocks.layer import Block, Embed
from hypelora_jax.families.blocks.masks import dropout
from hypelora_jax.families.family import BuildBackbone
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import fold_in, maybe, named_key
from hypelora_jax.sharding.rules import on_cpu, pin_rows
from hypelora_jax.types import Backbone, Batch, Key, Lora, Params

# On CPU up to this many layers are compiled one by one. A step of MiniLM (32 rows of
# 128 tokens, one thread, 2026-11-29) then takes 1.3 times as long to compile and 0.95
# of the time to run: nothing is copied into and out of stacks.
UNROLLED = 12


class Layout(NamedTuple):
    """What differs between the encoders of different families.

    `positions(config, ids, begin)` gives the row of the position table of each token;
    `begin` is the place of the first token of its example, None if each row has one;
    `segments` says whether tokens have segment types; `padded` names the embedding
    tables whose row `pad_id` is zero at the start; `drops_attended` says whether
    dropout follows the output projection of attention.
    """

    positions: Callable[[EncoderConfig, jax.Array, jax.Array | None], jax.Array]
    segments: bool
    padded: tuple[str, ...]
    max_tokens: Callable[[EncoderConfig], int]
    drops_attended: bool = True


def of_layout(layout: Layout) -> BuildBackbone:
    """Return the builder of the encoders that have this layout."""
    return partial(encoder, layout)


def encoder(
    layout: Layout,
    config: EncoderConfig,
    *,
    dtype: str = "float32",
    remat: str = "none",
    lora_dropout: float = 0.0,
    lowest: int = 0,
    attention: str = "xla",
) -> Backbone:
    """Build an encoder for the `backbone` subtree and a placed, folded adapter.

    Args:
      config: family and sizes.
      dtype: dtype of blocks and hidden states; softmax and norms use float32 or more.
      remat: "layer" recomputes each layer in the backward pass, with the same values.
      lora_dropout: dropout rate on the adapter's input.
      lowest: the lowest layer that an adapter may have; no gradient goes below it.
      attention: config.model.attention, see `fused_attention.choice`.

    Raises:
      UserError: an unknown `remat`, or (when applied) more tokens than positions, or
        an attention that cannot be computed.
    """
    block = Block(config, lora_dropout, layout.drops_attended, attention)
    remember = choose(REMAT, remat, "model.remat")
    unroll = remat == "none" and config.layers <= UNROLLED
    stack = _Stack(layout, config, block, dtype, remember, lowest, unroll)
    layers = partial(_layers, stack)

    def apply(
        params: Params,
        lora: Lora,
        batch: Batch,
        key: Key | None = None,
        row_B: jax.Array | None = None,
    ) -> jax.Array:
        return layers(params, lora, batch, key, row_B, keep=False)[1]

    def trace(
        params: Params,
        lora: Lora,
        batch: Batch,
        key: Key | None = None,
        row_B: jax.Array | None = None,
    ) -> jax.Array:
        first, _, rest = layers(params, lora, batch, key, row_B, keep=True)
        return jnp.concatenate([first[None], *rest])

    init = jax.jit(partial(_init, layout, config))  # eagerly it would compile op by op
    return Backbone(init, apply, trace)


# What the backward pass recomputes, by the name in config.model.remat. prevent_cse is
# False, because in a scan common subexpression elimination has nothing to merge.
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda body: body,
    "layer": partial(jax.checkpoint, prevent_cse=False),
}


class _Stack(NamedTuple):
    """The static choices of an encoder, see `encoder`."""

    layout: Layout
    config: EncoderConfig
    block: Block
    dtype: str
    remember: Callable[[Callable], Callable]
    lowest: int
    unroll: bool


def _layers(
    stack: _Stack,
    params: Params,
    lora: Lora,
    batch: Batch,
    key: Key | None,
    row_B: jax.Array | None,
    keep: bool,
) -> tuple[jax.Array, jax.Array, list[Any]]:
    """Return the first and the last states, and those of each layer if `keep`."""
    config, dtype, lowest = stack.config, stack.dtype, stack.lowest
    x = _embedded(stack.layout, config, params["embed"], batch).astype(dtype)
    x = pin_rows(dropout(x, config.hidden_dropout, maybe(key, "embed")))
    layers_key = maybe(key, "layers")  # a scan's one body folds in the layer
    mask = _attended(batch)

    def layer(x, row, at_BP=None):
        params, lora, index = row
        at = None if layers_key is None else fold_in(layers_key, index)
        # pinned, so that the compiler does not sum all rows over `fsdp`
        args = (pin_rows(x), mask, lora, at, row_B, at_BP)
        x = pin_rows(stack.block.apply({"params": _cast(params, dtype)}, *args))
        return x, (x if keep else None)

    # the last layer computes only the states that are read
    at_BP, count = None if keep else batch.get("first"), config.layers
    whole = count if at_BP is None else count - 1
    first, states = x, []
    for start, stop in ((0, lowest), (lowest, whole), (whole, count)):
        if start == stop:
            continue
        # without factors, so that no gradient goes below the lowest adapted layer
        own = lora if start >= lowest else {}
        rows = params["layers"], own, jnp.arange(count)
        rows = jax.tree.map(itemgetter(slice(start, stop)), rows)
        body = stack.remember(partial(layer, at_BP=at_BP if start == whole else None))
        x, kept = _over_layers(body, x, rows, stop - start, stack.unroll)
        states.append(kept)
    return first, x, states


def _over_layers(
    body: Callable, x: jax.Array, rows: Any, count: int, unroll: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Run `body` on each of `count` layers; also stack what it returns for each."""
    if not (count == 1 or (unroll and on_cpu())):
        return jax.lax.scan(body, x, rows)
    kept, body = [], jax.jit(body)  # traced once; the compiler inlines it
    for i in range(count):
        x, own = body(x, jax.tree.map(itemgetter(i), rows))
        kept.append(own)
    return x, None if kept[0] is None else jnp.stack(kept)


def _embedded(
    layout: Layout, config: EncoderConfig, params: Params, batch: Batch
) -> jax.Array:
    ids, limit = batch["ids"], layout.max_tokens(config)
    begin = _beginnings(batch)
    if begin is None and ids.shape[-1] > limit:
        raise UserError(
            f"a sequence has {ids.shape[-1]} tokens, but this model has positions for "
            f"{limit}; set data.max_length to that or less"
        )
    types = batch["types"] if layout.segments else jnp.zeros_like(ids)
    at = layout.positions(config, ids, begin)
    return cast(jax.Array, Embed(config).apply({"params": params}, ids, at, types))


def _attended(batch: Batch) -> jax.Array:
    """Return which tokens are attended to: (..., T), or (B, T, T) in packed rows."""
    if "segment" not in batch:
        return batch["mask"]
    segment_BT = batch["segment"]
    same = segment_BT[:, :, None] == segment_BT[:, None, :]
    return same & batch["mask"][:, None, :]


def _beginnings(batch: Batch) -> jax.Array | None:
    """Return where each token's example begins, (B, T), or None if rows have only one.

    Padding tokens begin at themselves, so that they have positions of the table.
    """
    if "segment" not in batch:
        return None
    segment_BT = batch["segment"]
    begin = jnp.take_along_axis(batch["first"], jnp.maximum(segment_BT - 1, 0), axis=-1)
    own = jnp.broadcast_to(jnp.arange(segment_BT.shape[-1]), segment_BT.shape)
    return jnp.where(segment_BT > 0, begin, own.astype(begin.dtype))


def _cast(params: Params, dtype: str) -> Params:
    """Cast one layer's parameters to the compute dtype; norms stay wide."""
    to = {name: wide(dtype) if "norm" in name else dtype for name in params}
    return {
        name: {leaf: x.astype(to[name]) for leaf, x in leaves.items()}
        for name, leaves in params.items()
    }


def _init(layout: Layout, config: EncoderConfig, key: Key) -> Params:
    """Hugging Face's init: normal(0.02), biases 0, norms 1, pad rows 0; float32."""
    ids = jnp.zeros((1,), jnp.int32)
    embed = Embed(config).init(named_key(key, "embed"), ids, ids, ids)["params"]
    for name in layout.padded:
        table = embed[name]["embedding"]
        embed[name] = {"embedding": table.at[config.pad_id].set(0)}

    def one(key: Key) -> Params:
        x, mask = jnp.zeros((1, config.width)), jnp.ones((1,), bool)
        return Block(config).init(key, x, mask, {}, None)["params"]

    keys = jax.random.split(named_key(key, "layers"), config.layers)
    return {"embed": embed, "layers": jax.vmap(one)(keys)}
