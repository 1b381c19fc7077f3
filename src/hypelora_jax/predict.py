"""Where conditioning, hyper-network, LoRA, backbone and head meet.

`adapt` makes the adapter once; `classify` uses it. Evaluation runs `adapt` once per
split, a training step once however many micro-batches it has; `predict` is both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from hypelora_jax import lora as lora_lib
from hypelora_jax import trees
from hypelora_jax.lora import Sites
from hypelora_jax.rng import maybe
from hypelora_jax.types import (
    Backbone,
    Batch,
    Conditioner,
    Head,
    HyperNet,
    Key,
    Lora,
    Params,
)


class Parts(NamedTuple):
    """What a model is made of; `cond` and `hyper` are None without a hyper-network."""

    backbone: Backbone
    head: Head
    cond: Conditioner | None
    hyper: HyperNet | None
    hyper_sites: Sites  # sites the hyper-network writes
    lora_sites: Sites  # sites with static factors
    scale: float  # alpha / rank
    num_layers: int


class Predictor(NamedTuple):
    """Pure functions of a model.

    compact(params, batch, alpha, key=None) -> list of (sites, compact lora), unscaled
    adapt(params, batch, alpha, key=None) -> lora, placed on all layers and scaled;
      every leaf has a leading B where the conditioning is per example, or where
      batch["member"], int32 (B,), says which of cond_KSC each row takes
    classify(params, lora, batch, key=None) -> logits_BY, at least float32
    predict(trainable, frozen, batch, alpha, key=None) -> logits_BY
    """

    compact: Callable
    adapt: Callable
    classify: Callable
    predict: Callable


def is_per_example(lora: Lora) -> bool:
    """Whether a placed adapter has a leading batch axis (a_BLIR instead of a_LIR)."""
    return any(x.ndim == 4 for x in jax.tree.leaves(lora))


def predictor(parts: Parts) -> Predictor:
    """The functions of a model made of `parts`."""

    def compact(
        params: Params, batch: Batch, alpha: jax.Array, key: Key | None = None
    ) -> list[tuple[Sites, Lora]]:
        cond = _condition(parts, params, batch)
        return _write(parts, params, cond, alpha, maybe(key, "hyper"))

    def adapt(
        params: Params, batch: Batch, alpha: jax.Array, key: Key | None = None
    ) -> Lora:
        key, cond = maybe(key, "hyper"), _condition(parts, params, batch)

        def one(cond_SC: jax.Array | None) -> Lora:
            made = _write(parts, params, cond_SC, alpha, key)
            return lora_lib.fold(lora_lib.place(made, parts.num_layers), parts.scale)

        if cond is None or cond.ndim == 2:
            return one(cond)
        lora = jax.vmap(one)(cond)
        if "member" not in batch:
            return lora
        # the network ran once a member, not once a row
        return jax.tree.map(lambda x: x[batch["member"]], lora)

    def classify(
        params: Params, lora: Lora, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        rows = {n: batch[n] for n in ("ids", "mask", "types")}
        encode = _per_example if is_per_example(lora) else _shared
        hidden_BTD = encode(
            parts, params["backbone"], lora, rows, maybe(key, "backbone")
        )
        return parts.head.apply(params["head"], hidden_BTD, maybe(key, "head"))

    def predict(
        trainable: Params,
        frozen: Params,
        batch: Batch,
        alpha: jax.Array,
        key: Key | None = None,
    ) -> jax.Array:
        params = trees.union(trainable, frozen)
        return classify(params, adapt(params, batch, alpha, key), batch, key)

    return Predictor(compact, adapt, classify, predict)


def _condition(parts: Parts, params: Params, batch: Batch) -> jax.Array | None:
    """cond_SC, or cond_BSC per example; None without a hyper-network."""
    if parts.hyper is None:
        return None
    return parts.cond.apply(params.get("cond", {}), batch)


def _write(
    parts: Parts,
    params: Params,
    cond_SC: jax.Array | None,
    alpha: jax.Array,
    key: Key | None,
) -> list[tuple[Sites, Lora]]:
    """Compact factors of all sites, generated ones first, unscaled."""
    made = []
    if parts.hyper is not None:
        lora = parts.hyper.apply(params["hyper"], cond_SC, alpha, key)
        made.append((parts.hyper_sites, lora))
    if parts.lora_sites:
        made.append((parts.lora_sites, params["lora"]))
    return made


def _shared(
    parts: Parts, params: Params, lora: Lora, rows: Batch, key: Key | None
) -> jax.Array:
    """Hidden states where all rows have one adapter."""
    return parts.backbone.apply(params, lora, rows, key)


def _per_example(
    parts: Parts, params: Params, lora: Lora, rows: Batch, key: Key | None
) -> jax.Array:
    """Hidden states where each row has its own factors: x A B, never a dense delta."""
    if key is None:
        return jax.vmap(parts.backbone.apply, (None, 0, 0, None))(
            params, lora, rows, None
        )
    keys = jax.random.split(key, rows["ids"].shape[0])  # one key: equal dropout
    return jax.vmap(parts.backbone.apply, (None, 0, 0, 0))(params, lora, rows, keys)
