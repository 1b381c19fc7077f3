"""Conditioning vectors: what tells the hyper-network which site it writes for."""

import jax
import jax.numpy as jnp

from hypelora_jax.errors import UserError
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
                "config.hyper.cond=given wants batch['cond'] of shape "
                f"({slots}, {width}) or (B, {slots}, {width}); got none: pass it from "
                "Python, or use hyper.cond=learned"
            )
        cond = batch["cond"]
        if cond.ndim not in (2, 3) or cond.shape[-2:] != (slots, width):
            raise UserError(
                f"batch['cond'] has shape {cond.shape}; wanted ({slots}, {width}) or "
                f"(B, {slots}, {width})"
            )
        return cond

    return Conditioner(lambda key: {}, apply)


def conditioner(kind: str, slots: int, width: int, members: int = 1) -> Conditioner:
    """Conditioner by name: learned (of one or more members), onehot or given."""
    if kind == "onehot":
        return onehot(slots)
    if kind == "learned":
        return learned(slots, width, members)
    return given(slots, width)


def cond_width(kind: str, slots: int, width: int) -> int:
    """C: width of the vectors a conditioner gives."""
    return slots if kind == "onehot" else width
