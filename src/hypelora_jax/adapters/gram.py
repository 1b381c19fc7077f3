"""Norms, distances and recovery of deltas A B by r x r Gram matrices.

No delta is built: with D = A B and D' = A' B',

    <D, D'> = tr(D^T D') = sum_rs (A^T A')_rs (B B'^T)_rs,

and |D - D'|^2 = |D|^2 + |D'|^2 - 2 <D, D'>. All results depend on deltas only, so
they are the same for A G and G^-1 B. Factors are a (..., I, R) and b (..., R, O): the
leading axes are layers, or layers and conditions as in a_LUIR, and two sets of factors
may differ in rank. Everything is computed in at least float32. The squared distance is
a difference of larger numbers: in float32 its rounding error is about 1e-7 |D|^2.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypelora_jax.types import Lora

Factors = Mapping[str, jax.Array]  # {"a": (..., I, R), "b": (..., R, O)} of one module
PRECISE = jax.lax.Precision.HIGHEST  # the default of accelerators has 8 to 10 bits


class Recovery(NamedTuple):
    """R^2 of reconstructed deltas: of each site, (L,) by module, and of all together.

    1 is a perfect reconstruction, 0 is as good as the mean adapter; it may be negative.
    NaN where all targets equal the mean.
    """

    sites: dict[str, jax.Array]
    whole: jax.Array


class Spread(NamedTuple):
    """Sums over U deltas at each site: (L,), at least 0."""

    between: jax.Array  # sum_u |D_u - M|^2, with the mean delta M
    moment: jax.Array  # sum_u |D_u|^2


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def inner(left: Factors, right: Factors) -> jax.Array:
    """Inner products <A B, A' B'> of deltas, (...); leading axes broadcast."""
    a, b, c, d = map(_wide, (left["a"], left["b"], right["a"], right["b"]))
    aa = jnp.einsum("...ir,...is->...rs", a, c, precision=PRECISE)
    bb = jnp.einsum("...ro,...so->...rs", b, d, precision=PRECISE)
    return jnp.sum(aa * bb, axis=(-2, -1))


def squared_norm(factors: Factors) -> jax.Array:
    """Squared Frobenius norm |A B|^2, (...), at least 0."""
    return jnp.maximum(inner(factors, factors), 0)


def squared_distance(left: Factors, right: Factors) -> jax.Array:
    """Squared Frobenius distance |A B - A' B'|^2, (...), at least 0."""
    both = squared_norm(left) + squared_norm(right)
    return jnp.maximum(both - 2 * inner(left, right), 0)


def relative_losses(made: Lora, target: Lora) -> dict[str, jax.Array]:
    """Relative squared error |D - D'|^2 / |D'|^2 of each site, (...) by module.

    It is 1 for a delta of zero. If the target is zero, the error is not divided.

    Raises:
      ValueError: the modules are not the same.
    """
    _check_modules(made, target)
    losses = {}
    for m in made:
        size = squared_norm(target[m])
        error = squared_distance(made[m], target[m])
        losses[m] = error / jnp.where(size > 0, size, 1)
    return losses


def cosines(made: Lora, target: Lora) -> dict[str, jax.Array]:
    """Cosine <D, D'> / (|D| |D'|) of each site, (...) by module; 0 if one is zero.

    Raises:
      ValueError: the modules are not the same.
    """
    _check_modules(made, target)
    out = {}
    for m in made:
        size = squared_norm(made[m]) * squared_norm(target[m])
        some = size > 0  # the inner `where` keeps sqrt's infinite gradient out at 0
        root = jnp.sqrt(jnp.where(some, size, 1))
        out[m] = jnp.where(some, inner(made[m], target[m]) / root, 0)
    return out


def stacked(adapters: Sequence[Lora]) -> Lora:
    """Stack U adapters, a_LIR and b_LRO, to a_LUIR and b_LURO of the largest rank.

    Factors of lower rank get zeros, which changes no delta.

    Raises:
      ValueError: there are none, or their modules are not the same.
    """
    if not adapters:
        raise ValueError("there are no adapters to stack; expected at least one")
    for other in adapters:
        _check_modules(adapters[0], other)
    out = {}
    for m in adapters[0]:
        rank = max(one[m]["a"].shape[-1] for one in adapters)
        a = [_padded(one[m]["a"], rank, axis=-1) for one in adapters]
        b = [_padded(one[m]["b"], rank, axis=-2) for one in adapters]
        out[m] = {"a": jnp.stack(a, axis=1), "b": jnp.stack(b, axis=1)}
    return out


def _padded(x: jax.Array, rank: int, axis: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, rank - x.shape[axis])
    return jnp.pad(x, widths)


def mean(adapters: Lora) -> Lora:
    """Adapter whose delta is the mean of U deltas, from a_LUIR and b_LURO.

    Its factors are those of all adapters side by side, (L, I, U R) and (L, U R, O),
    with b divided by U.
    """
    out = {}
    for m, f in adapters.items():
        layers, count, wide, rank = f["a"].shape
        a = jnp.moveaxis(f["a"], 1, 2).reshape(layers, wide, count * rank)
        b = f["b"].reshape(layers, count * rank, -1) / count
        out[m] = {"a": a, "b": b}
    return out


def recovery(made: Lora, targets: Lora, of_mean: Lora) -> Recovery:
    """R^2 of U deltas against predicting the delta of the mean adapter for each.

    R^2 = 1 - sum_u |D_u - D'_u|^2 / sum_u |D'_u - M|^2 at each site. For the whole,
    both sums are over the sites, too, so that sites with large deltas count most.

    Args:
      made: reconstructed factors, a_LUIR and b_LURO.
      targets: the factors that they should reproduce, of any rank.
      of_mean: `mean` of the adapters of training, which are not always the targets.

    Raises:
      ValueError: the modules are not the same.
    """
    _check_modules(made, targets)
    _check_modules(made, of_mean)
    errors, totals = {}, {}
    for m in made:
        each = {n: x[:, None] for n, x in of_mean[m].items()}  # broadcast over U
        errors[m] = jnp.sum(squared_distance(made[m], targets[m]), axis=1)
        totals[m] = jnp.sum(squared_distance(targets[m], each), axis=1)
    sites = {m: 1 - errors[m] / totals[m] for m in errors}
    error, total = (
        jnp.sum(jnp.concatenate(list(x.values()))) for x in (errors, totals)
    )
    return Recovery(sites, 1 - error / total)


def spread(adapters: Lora) -> dict[str, Spread]:
    """How far U deltas are apart, from a_LUIR and b_LURO, by module.

    With the mean delta M, sum_u |D_u - M|^2 = sum_u (|D_u|^2 - <D_u, M>), and M is one
    adapter of rank U R. The products with it are made one delta at a time.
    """
    out = {}
    for m, f in adapters.items():
        of_mean = mean({m: f})[m]
        each = {n: jnp.moveaxis(x, 1, 0) for n, x in f.items()}
        of_delta = functools.partial(inner, right=of_mean)
        along_UL = jax.lax.map(of_delta, each)
        moment_L = jnp.sum(squared_norm(f), axis=1)
        between_L = jnp.maximum(moment_L - jnp.sum(along_UL, axis=0), 0)
        out[m] = Spread(between_L, moment_L)
    return out


def _check_modules(left: Lora, right: Lora) -> None:
    if left.keys() != right.keys():
        raise ValueError(
            f"one adapter has the modules {sorted(left)}, the other {sorted(right)}; "
            "expected the same"
        )
