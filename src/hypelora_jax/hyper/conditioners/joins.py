"""Joins the vectors of all sources with the descriptions of the sites."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import ConditionConfig, Settings
from hypelora_jax.errors import UserError, choose
from hypelora_jax.hyper.conditioners.descriptions import SITES
from hypelora_jax.keys import maybe, named_key
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params

CERTAIN = 50.0  # b before the fit: tanh(25) is 1 in float32, so the sign is 1


class Join(NamedTuple):
    """A way to join descriptions of the sites and vectors into one per slot.

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


def joined(
    settings: Settings, sites: Sites, slots: int, sources: Mapping[str, Conditioner]
) -> Conditioner:
    """Build the conditioner that the hyper-network reads, from those of the sources.

    The vectors of the sources are concatenated, and then joined with the descriptions
    of the sites as `condition.join` says. Under `condition.sign` what is joined is the
    last part of the vectors, without what lies along an axis of the sign, see
    `signed`. Sources of width 0 leave the descriptions; then each member of a
    hyper-ensemble has its own.

    Raises:
      UserError: two sources read the same entry of a batch, or nothing tells the sites
        apart.
    """
    config = settings.condition
    given = sum(source.width for source in sources.values())
    width = given // config.parts  # of the last part, if there is a sign
    members = 1 if given else settings.uncertainty.conditions
    describe = choose(SITES, settings.hyper.cond, "hyper.cond")
    described = describe(sites, slots, settings.hyper.cond_dim, members)
    join = choose(JOINS, config.join, "condition.join")
    if not given:
        return described
    reads = _reads(config, join, sources)
    if config.sign:
        _check_sign(config, reads, given)

    def init(key: Key) -> Params:
        params = described.init(key) if join.describes else {}
        params = {**params, **join.init(key, described.width, width)}
        for name, source in sources.items():
            params |= source.init(named_key(key, name))
        if config.sign:
            axes = {"kernel": jnp.zeros(given), "axis": jnp.zeros(width)}
            params["sign"] = {**axes, "bias": jnp.full((), CERTAIN)}
        return params

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        found = []
        for name, source in sources.items():
            own = maybe(key, name)
            vectors_USC, row_B, _ = source.apply(params, batch, own)
            vectors_USC = disturbed(config, vectors_USC, own)
            found.append(Conditions(vectors_USC, row_B))
        parts, row_B = aligned(found)
        every = [jnp.broadcast_to(x, (len(x), slots, x.shape[-1])) for x in parts]
        vectors_USC, sign_U = jnp.concatenate(every, axis=-1), None
        if config.sign:
            vectors_USC, sign_U = signed(params["sign"], vectors_USC)
        if join.describes:
            sites_SE = described.apply(params, batch, key).vectors_USC[0]
            vectors_USC = join.apply(params, sites_SE, vectors_USC)
        return Conditions(vectors_USC, row_B, sign_U)

    return Conditioner(init, apply, reads, join.width(described.width, width))


def _check_sign(config: ConditionConfig, reads: Mapping[str, Any], width: int) -> None:
    """Refuse vectors that have no sign, or that are not those of so many layers."""
    if set(reads) != {"condition"} or len(config.sources) > 1:
        raise UserError(
            "config.condition.sign is the sign of a description, but condition.source "
            f"is {config.source}; expected condition.source=text, or sign=0"
        )
    if width % config.parts:
        raise UserError(
            f"config.condition.sign reads three vectors of {config.sign} layers, but a "
            f"vector has {width} entries; expected a multiple of {config.parts}"
        )


def signed(params: Params, x_USC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vectors (U, S, D) without the axis of the sign, and the sign (U,).

    The sign is 2 p - 1, -1 to 1, where p = sigmoid(b + w . x) is the probability that a
    description is not the negation; x is the mean over the slots. The vectors are the
    last D entries, less their part along the axis. So a task and its negation get
    adapters that are alike, and logits of opposite sign. All are frozen;
    `train.conditioning.wordings` fits them before training.

    Args:
      params: w `kernel` (C,), b `bias` () and `axis` (D,) of norm 1.
      x_USC: the vectors of each slot.
    """
    axis_D = params["axis"]
    logit_U = params["bias"] + jnp.mean(x_USC, axis=1) @ params["kernel"]
    last_USD = x_USC[..., -len(axis_D) :]
    rest_USD = last_USD - jnp.einsum("us,d->usd", last_USD @ axis_D, axis_D)
    return rest_USD, jnp.tanh(logit_U / 2)


def _reads(
    config: ConditionConfig, join: Join, sources: Mapping[str, Conditioner]
) -> dict[str, tuple[int, ...]]:
    """Return what the sources read together."""
    reads: dict[str, tuple[int, ...]] = {}
    for name, source in sources.items():
        if both := reads.keys() & source.reads.keys():
            raise UserError(
                f"config.condition.source is {config.source!r}, but {name} reads "
                f"batch[{both.pop()!r}], which the source before it reads as well; "
                "expected one of them"
            )
        reads |= source.reads
    if not join.describes and "condition" not in reads:  # only these may be (S, C)
        raise UserError(
            f"config.condition.join={config.join} leaves out what tells sites apart, "
            f"but condition.source={config.source} gives one vector for all sites; "
            "expected condition.join=concat or sum"
        )
    return reads


def disturbed(config: ConditionConfig, x: jax.Array, key: Key | None) -> jax.Array:
    """Vectors with Gaussian noise of deviation `condition.jitter`, and with dropout.

    Kept entries are divided by 1 - `condition.dropout`. Without a key nothing is drawn.
    """
    if key is None:
        return x
    if config.jitter:
        drawn = jax.random.normal(named_key(key, "jitter"), x.shape, x.dtype)
        x = x + config.jitter * drawn
    if config.dropout:
        keep = 1 - config.dropout
        mask = jax.random.bernoulli(named_key(key, "dropout"), keep, x.shape)
        x = jnp.where(mask, x / keep, jnp.zeros_like(x))
    return x


def aligned(found: Sequence[Conditions]) -> tuple[list[jax.Array], jax.Array | None]:
    """Return the vectors of all sources for one axis U, and the row index of that axis.

    A source of one condition gives it to all. If the others do not share their
    conditions, every row of the batch gets a condition of its own.
    """
    several = [own for own in found if len(own.vectors_USC) > 1] or found[:1]
    count, row_B = len(several[0].vectors_USC), several[0].row_B
    if any(len(x.vectors_USC) != count or x.row_B is not row_B for x in several):
        rows = max(len(x.vectors_USC if x.row_B is None else x.row_B) for x in several)
        found = [_by_row(own, rows) for own in found]
        count, row_B = rows, None
    vectors = [own.vectors_USC for own in found]
    return [jnp.broadcast_to(x, (count, *x.shape[1:])) for x in vectors], row_B


def _by_row(own: Conditions, rows: int) -> Conditions:
    vectors_USC, row_B, _ = own
    if row_B is not None:
        return Conditions(vectors_USC[row_B])
    return Conditions(jnp.repeat(vectors_USC, rows // len(vectors_USC), axis=0))
