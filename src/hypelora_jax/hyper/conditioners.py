"""Conditioning vectors: what tells the hyper-network which site it writes for."""

import jax
import jax.numpy as jnp

from hypelora_jax.errors import UserError, choose
from hypelora_jax.types import Batch, Conditioner, Key, Params


def learned(slots: int, width: int, members: int = 1) -> Conditioner:
    """One learned embedding a slot, drawn from N(0, 1) as in the reference (A.1).

    With several members each has embeddings of its own: cond_KSC in the place of
    cond_SC, K members.
    """
    shape = (slots, width) if members == 1 else (members, slots, width)

    def init(key: Key) -> Params:
        return {"embedding": jax.random.normal(key, shape)}

    def apply(params: Params, batch: Batch) -> jax.Array:
        del batch
        return params["embedding"]

    return Conditioner(init, apply)


def onehot(slots: int) -> Conditioner:
    """The S unit vectors of width S; nothing to learn."""

    def apply(params: Params, batch: Batch) -> jax.Array:
        del params, batch
        return jnp.eye(slots)

    return Conditioner(lambda key: {}, apply)


def given(slots: int, width: int) -> Conditioner:
    """What the caller passes as `batch["cond"]`: (S, C), or (B, S, C) per example."""

    def apply(params: Params, batch: Batch) -> jax.Array:
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
        return cond

    return Conditioner(lambda key: {}, apply)


SITES = {  # hyper.cond: what a site is described by
    "learned": learned,
    "onehot": lambda slots, width, members: onehot(slots),
}
SOURCES = {"none": None, "given": given}  # condition.source


def conditioner(
    kind: str, slots: int, width: int, members: int = 1, source: str = "none"
) -> Conditioner:
    """Conditioner of a source of conditions, else of a kind of sites."""
    if (of_source := choose(SOURCES, source, "config.condition.source")) is not None:
        return of_source(slots, width)
    return choose(SITES, kind, "config.hyper.cond")(slots, width, members)


def cond_width(kind: str, slots: int, width: int, source: str = "none") -> int:
    """C: width of the vectors a conditioner gives."""
    return slots if kind == "onehot" and source == "none" else width
