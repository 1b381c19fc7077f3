"""Conditioning vectors: what tells the hyper-network which site it writes for.

A site is described by a vector of its own (`hyper.cond`): a learned embedding, or a
unit vector. The conditioner `none` gives these descriptions alone; `given` takes the
vectors from the batch in their place.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError, choose
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def learned(slots: int, width: int, members: int = 1) -> Conditioner:
    """One learned embedding a slot, drawn from N(0, 1) as in the reference (A.1).

    With several members each has embeddings of its own, (K, S, C), and
    `batch["member"]`, int32 (B,), says which member's each row takes.
    """
    shape = (slots, width) if members == 1 else (members, slots, width)

    def init(key: Key) -> Params:
        return {"embedding": jax.random.normal(key, shape)}

    def apply(params: Params, batch: Batch) -> Conditions:
        return Conditions(params["embedding"], batch.get("member"))

    return Conditioner(init, apply, {}, width)


def onehot(slots: int, width: int, members: int = 1) -> Conditioner:
    """The S unit vectors of width S; there is nothing to learn."""
    del width, members

    def apply(params: Params, batch: Batch) -> Conditions:
        del params, batch
        return Conditions(jnp.eye(slots))

    return Conditioner(lambda key: {}, apply, {}, slots)


SITES: dict[str, Callable[[int, int, int], Conditioner]] = {
    "learned": learned,
    "onehot": onehot,
}


def none(settings: Settings, slots: int) -> Conditioner:
    """The descriptions of the sites, and no other condition."""
    describe = choose(SITES, settings.hyper.cond, "hyper.cond")
    return describe(slots, settings.hyper.cond_dim, settings.uncertainty.conditions)


def given(settings: Settings, slots: int) -> Conditioner:
    """What the caller passes as `batch["cond"]`: (S, C), or (B, S, C) per example."""
    width = settings.hyper.cond_dim

    def apply(params: Params, batch: Batch) -> Conditions:
        del params
        if "cond" not in batch:
            raise UserError(
                "config.condition.source=given wants batch['cond'] of shape "
                f"({slots}, {width}) or (B, {slots}, {width}); got none: pass it from "
                "Python, or use condition.source=none"
            )
        cond = batch["cond"]
        if cond.ndim not in (2, 3) or cond.shape[-2:] != (slots, width):
            raise UserError(
                f"batch['cond'] has shape {cond.shape}; wanted ({slots}, {width}) or "
                f"(B, {slots}, {width})"
            )
        return Conditions(cond)

    return Conditioner(lambda key: {}, apply, {"cond": (slots, width)}, width)
