"""Unlabelled sentences of a task, pooled into one vector."""

import math

import jax
import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.hyper.conditioners.vectors import (
    blank_standard,
    entry,
    standardised,
    unit_rms,
)
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def sentences(settings: Settings, sizes: Sizes) -> Conditioner:
    """The embeddings `batch["sentences"]` (U, k, C), pooled by `condition.pooling`.

    The pooled vector has unit RMS. Under `condition.standardise` the frozen leaves
    `set/standard/mean` and `set/standard/std` (C,) first give each entry of a sentence
    mean 0 and deviation 1 over the sentences of train; a mean of k such sentences is
    smaller than each of them, so unit RMS follows here, too.
    """
    config, width = settings.condition, sizes.vectors
    if not width:
        raise UserError(
            "config.condition.source=set needs the width of the embeddings of "
            "sentences; expected data that have them, such as data.source=tasks (for "
            "hypelora plan: condition.width)"
        )
    shape, attends = (config.sentences, width), config.pooling == "attention"

    def init(key: Key) -> Params:
        del key
        # a query of zero gives every sentence the same weight: the mean
        own: Params = {"query": jnp.zeros(width)} if attends else {}
        if config.standardise:
            own["standard"] = blank_standard(width)
        return {"set": own} if own else {}

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del key
        x_UNC, own = entry(batch, "sentences", "set", [shape]), params.get("set", {})
        if config.standardise:
            x_UNC = standardised(x_UNC, own["standard"])
        pooled_UC = attended(x_UNC, own["query"]) if attends else x_UNC.mean(axis=1)
        return Conditions(unit_rms(pooled_UC)[:, None], batch.get("row"))

    return Conditioner(init, apply, {"sentences": shape}, width)


def attended(x_UNC: jax.Array, query_C: jax.Array) -> jax.Array:
    """Average of sentences (U, C), weighted by how well each agrees with the query.

    The weights are a softmax over the sentences of the scaled products of query and
    sentence at unit RMS, in at least float32.
    """
    wide = jnp.promote_types(x_UNC.dtype, jnp.float32)
    keys_UNC = unit_rms(x_UNC.astype(wide))
    scores_UN = jnp.einsum("unc,c->un", keys_UNC, query_C.astype(wide))
    weights_UN = jax.nn.softmax(scores_UN / math.sqrt(x_UNC.shape[-1]), axis=-1)
    return jnp.einsum("un,unc->uc", weights_UN, x_UNC.astype(wide)).astype(x_UNC.dtype)
