"""Conditioning vectors: what tells the hyper-network which site it writes for."""

import jax
import jax.numpy as jnp

from hypelora_jax.types import Batch, Conditioner, Key, Params, UserError


def learned(slots: int, width: int) -> Conditioner:
    """One learned embedding a slot, drawn from N(0, 1) as in the reference (A.1)."""

    def init(key: Key) -> Params:
        return {"embedding": jax.random.normal(key, (slots, width))}

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


def conditioner(kind: str, slots: int, width: int) -> Conditioner:
    """Conditioner by name: learned, onehot or given."""
    if kind == "onehot":
        return onehot(slots)
    return {"learned": learned, "given": given}[kind](slots, width)


def cond_width(kind: str, slots: int, width: int) -> int:
    """C: width of the vectors a conditioner gives."""
    return slots if kind == "onehot" else width
