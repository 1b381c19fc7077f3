"""Norms and cosines of the deltas A B, computed without building any of them."""

import jax
import jax.numpy as jnp

from hypelora_jax.adapters.gram import squared_norm
from hypelora_jax.types import Lora


def delta_norms(lora: Lora) -> dict[str, jax.Array]:
    """Frobenius norm of A B at each site, (L,) per module, without building A B."""
    return {m: jnp.sqrt(squared_norm(f)) for m, f in lora.items()}


def _gram(left: dict, right: dict) -> jax.Array:
    """Inner products <A_l B_l, A_m B_m> of all pairs of layers, (L, L)."""
    aa = jnp.einsum("lir,mis->lmrs", left["a"], right["a"])
    bb = jnp.einsum("lro,mso->lmrs", left["b"], right["b"])
    return jnp.einsum("lmrs,lmrs->lm", aa, bb)


def mean_cosine(lora: Lora) -> jax.Array:
    """Mean cosine between the deltas of different sites of equal shape.

    A value near 1 means that conditioning hardly matters: every site gets the same
    delta. It is NaN if no two sites share a shape. Pairs with a zero delta are ignored.
    """
    groups: dict[tuple, list[dict]] = {}
    for f in lora.values():
        groups.setdefault((f["a"].shape[1], f["b"].shape[2]), []).append(f)
    total, count = jnp.zeros(()), jnp.zeros(())
    for members in groups.values():
        stacked = {n: jnp.concatenate([f[n] for f in members]) for n in ("a", "b")}
        gram = _gram(stacked, stacked)
        norm = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
        norms = norm[:, None] * norm[None, :]
        pairs = (norms > 0) & ~jnp.eye(len(norm), dtype=bool)
        total += jnp.sum(jnp.where(pairs, gram / jnp.where(pairs, norms, 1), 0))
        count += jnp.sum(pairs)
    return total / count
