"""Conditioning vectors, the input of the hyper-network.

Each site is described by one vector (`hyper.cond`): a learned embedding, or a unit
vector. The conditioner `none` gives only these descriptions; `given` joins them with
vectors that come with the data.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError, choose
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def learned(slots: int, width: int, members: int = 1) -> Conditioner:
    """One learned embedding per slot, drawn from N(0, 1) as in the reference (A.1).

    With several members, each member has its embeddings, (K, S, C), and
    `batch["row"]`, int32 (B,), gives the member of each row.
    """
    shape = (slots, width) if members == 1 else (members, slots, width)

    def init(key: Key) -> Params:
        return {"embedding": jax.random.normal(key, shape)}

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del key
        embedding = params["embedding"]  # (S, C) of one member, or (K, S, C)
        if embedding.ndim == 2:
            return Conditions(embedding[None])
        return Conditions(embedding, batch["row"])

    return Conditioner(init, apply, {}, width)


def onehot(slots: int, width: int, members: int = 1) -> Conditioner:
    """The S unit vectors of width S; there is nothing to learn."""
    del width, members

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del params, batch, key
        return Conditions(jnp.eye(slots)[None])

    return Conditioner(lambda key: {}, apply, {}, slots)


SITES: dict[str, Callable[[int, int, int], Conditioner]] = {
    "learned": learned,
    "onehot": onehot,
}


def none(settings: Settings, slots: int) -> Conditioner:
    """Give the descriptions of the sites, and no other condition."""
    describe = choose(SITES, settings.hyper.cond, "hyper.cond")
    return describe(slots, settings.hyper.cond_dim, settings.uncertainty.conditions)


class Join(NamedTuple):
    """A way to join descriptions of the sites and data vectors into one per slot.

    `init(key, E, C) -> params`; `apply(params, sites_SE, vectors_USC)` returns vectors
    (U, S, width(E, C)). If `describes` is False, the sites have no descriptions.
    """

    init: Callable[[Key, int, int], Params]
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]
    width: Callable[[int, int], int]
    describes: bool = True


def _nothing(key: Key, sites_width: int, width: int) -> Params:
    del key, sites_width, width
    return {}


def _concatenated(
    params: Params, sites_SE: jax.Array, vectors_USC: jax.Array
) -> jax.Array:
    del params
    shape = (len(vectors_USC), *sites_SE.shape)
    sites_USE = jnp.broadcast_to(sites_SE[None], shape).astype(vectors_USC.dtype)
    return jnp.concatenate([sites_USE, vectors_USC], axis=-1)


def _projection(key: Key, sites_width: int, width: int) -> Params:
    """Kernel (C, E) of N(0, 1 / C), so vectors of variance 1 weigh as much as sites."""
    kernel_CE = jax.random.normal(key, (width, sites_width)) / jnp.sqrt(width)
    return {"project": {"kernel": kernel_CE}}


def _summed(params: Params, sites_SE: jax.Array, vectors_USC: jax.Array) -> jax.Array:
    kernel_CE = params["project"]["kernel"]
    projected_USE = jnp.einsum("usc,ce->use", vectors_USC, kernel_CE)
    return projected_USE + jnp.broadcast_to(sites_SE[None], projected_USE.shape)


# Joins of vectors and descriptions, by the name in config.condition.join.
JOINS: dict[str, Join] = {
    "concat": Join(_nothing, _concatenated, lambda e, c: e + c),
    "sum": Join(_projection, _summed, lambda e, c: e),
    "replace": Join(_nothing, lambda p, sites, x: x, lambda e, c: c, describes=False),
}


def given(settings: Settings, slots: int) -> Conditioner:
    """Join vectors of the data with the descriptions of the sites.

    `batch["condition"]` has U distinct vectors: (U, C), the same for all slots, or
    (U, S, C). Under `condition.standardise` the frozen leaves `standard/mean` and
    `standard/std` (C,) of the train split give each entry mean 0 and deviation 1.
    """
    config = settings.condition
    join, sites = choose(JOINS, config.join, "condition.join"), none(settings, slots)
    if not config.width:
        raise UserError(
            "config.condition.source=given needs a vector with each example; name "
            "their column with config.data.condition=COLUMN, or a file of them with "
            "config.condition.file=FILE.npz (for hypelora plan: condition.width)"
        )

    def init(key: Key) -> Params:
        described = sites.init(key) if join.describes else {}
        params = {**described, **join.init(key, sites.width, config.width)}
        if config.standardise:
            mean, std = jnp.zeros(config.width), jnp.ones(config.width)
            params["standard"] = {"mean": mean, "std": std}
        return params

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        vectors_USC = _checked(batch, slots, config.width)
        if config.standardise:
            mean, std = (params["standard"][n][None, None] for n in ("mean", "std"))
            vectors_USC = (vectors_USC - mean) / std
        if join.describes:
            sites_SE = sites.apply(params, batch, key).vectors_USC[0]
            vectors_USC = join.apply(params, sites_SE, vectors_USC)
        return Conditions(vectors_USC, batch.get("row"))

    width = join.width(sites.width, config.width)
    return Conditioner(init, apply, {"condition": (config.width,)}, width)


def _checked(batch: Batch, slots: int, width: int) -> jax.Array:
    """Check the vectors of a batch and return them as (U, S, C)."""
    wanted = f"(U, {width}) or (U, {slots}, {width})"
    if "condition" not in batch:
        raise UserError(
            "config.condition.source=given needs batch['condition'] of shape "
            f"{wanted}, but the batch has none; give vectors, or use "
            "condition.source=none"
        )
    vectors = batch["condition"]
    if vectors.shape[1:] not in ((width,), (slots, width)):
        raise UserError(
            f"batch['condition'] has shape {vectors.shape}; expected {wanted}"
        )
    if vectors.ndim == 2:
        shape = (len(vectors), slots, width)
        return jnp.broadcast_to(vectors[:, None], shape)
    return vectors
