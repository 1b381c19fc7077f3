"""Ensembles: how their members are stored in one tree, trained and taken out of it.

A deep ensemble (Lakshminarayanan et al. 2017) is K seeds trained side by side: every
leaf except the frozen backbone's has a leading axis K, and one step is the ordinary
step under vmap. A hyper-ensemble is K conditioning embeddings, cond_KSC, of one
hyper-network, or K draws of its noise: the rows of a batch are divided among the
members, as in BatchEnsemble (Wen et al. 2020, section 3.2), so that an epoch costs the
same as without members. In both cases a member is an ordinary tree, and the ordinary
functions predict with it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypelora_jax.calibration import pooling
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.batches import Dataset
from hypelora_jax.objectives import training_loss
from hypelora_jax.train import scoring
from hypelora_jax.train.state import TrainState, init_state
from hypelora_jax.types import Adapter, Batch, Key, Params


def count(settings: Settings) -> int:
    """Return the number of members that are trained."""
    return max(settings.uncertainty.seeds, settings.uncertainty.conditions)


def of_seeds(settings: Settings) -> list[Settings]:
    """Return settings for each member of a deep ensemble: seeds seed, seed + 1, ..."""
    first, members = settings.seed, range(settings.uncertainty.seeds)
    return [dataclasses.replace(settings, seed=first + k) for k in members]


def stack(parts: Sequence[tuple[Params, Params]]) -> tuple[Params, Params]:
    """Stack (trainable, frozen) of all seeds on an axis K; they share the backbone."""
    trainable, frozen = zip(*parts, strict=True)

    def stacked(*leaves: jax.Array) -> jax.Array:
        return jnp.stack(leaves)

    shared = {n: x for n, x in frozen[0].items() if n == "backbone"}
    own = [{n: x for n, x in tree.items() if n != "backbone"} for tree in frozen]
    return jax.tree.map(stacked, *trainable), shared | jax.tree.map(stacked, *own)


def member(
    settings: Settings, trainable: Params, frozen: Params, k: int
) -> tuple[Params, Params]:
    """Return (trainable, frozen) of member k, as if a run had trained it alone."""
    if settings.uncertainty.conditions > 1:
        return _with_condition(trainable, k), _with_condition(frozen, k)
    if settings.uncertainty.seeds == 1:
        return trainable, frozen
    own = {n: x for n, x in frozen.items() if n != "backbone"}
    cut = jax.tree.map(lambda x: x[k], (trainable, own))
    return cut[0], {**frozen, **cut[1]}


def _with_condition(tree: Params, k: int) -> Params:
    """Return the tree with the embeddings of member k alone, or its draw of noise."""
    cond = dict(tree.get("cond", {}))
    if "noise" in cond:
        cond["noise"] = {"draws": cond["noise"]["draws"][k : k + 1]}
    elif "embedding" in cond and cond["embedding"].ndim == 3:
        cond["embedding"] = cond["embedding"][k]
    return {**tree, "cond": cond} if cond else tree


def start(
    trainable: Params, tx: optax.GradientTransformation, keys: Sequence[Key]
) -> TrainState:
    """Return the state before the first step, of as many seeds as there are keys."""
    if len(keys) == 1:
        return init_state(trainable, tx, keys[0])
    state = jax.vmap(lambda own, key: init_state(own, tx, key))(
        trainable, jnp.stack(keys)
    )
    # vmap gave each seed a step number of its own, but all seeds share one
    return dataclasses.replace(state, step=jnp.zeros((), jnp.int32))


def over_seeds(step: Callable) -> Callable:
    """Make a step of all seeds at once, on the same rows; its info is their mean."""

    def run(state: TrainState, frozen: Params, batch: Batch):
        axes = TrainState(step=None, params=0, opt_state=0, key=0)
        own = {name: None if name == "backbone" else 0 for name in frozen}
        state, info = jax.vmap(step, (axes, own, None), (axes, 0))(state, frozen, batch)
        # one seed that is not finite is enough to stop the run; if skipping is allowed,
        # only that seed skips
        finite = jnp.all(info.pop("finite"))
        return state, {**jax.tree.map(jnp.mean, info), "finite": finite}

    return run


def dealt(batch: Batch, step: jax.Array, members: int) -> Batch:
    """Add `row`, int32 (B,): row i of step s belongs to member (i + s) mod K."""
    rows = jnp.arange(batch["ids"].shape[0], dtype=jnp.int32)
    return {**batch, "row": (rows + step) % members}


def temperatures(settings: Settings, trainable: Params) -> np.ndarray:
    """Return the training temperature of each member (K,), 1 if it is not learned."""
    parts = [member(settings, trainable, {}, k)[0] for k in range(count(settings))]
    losses = [part.get("loss", {}) for part in parts]
    return np.array([training_loss.temperature_of(loss) for loss in losses])


def split_logits(
    settings: Settings,
    run: scoring.Forward,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    data: Dataset,
    edges: tuple[int, ...],
    kept: dict[int, Adapter] | None = None,
) -> np.ndarray:
    """Compute raw logits (K, N, Y) of all members on a split; K = 1 without members.

    `kept` caches the members' adapters for later calls with the same parameters.
    """
    size, kept = settings.optim.batch_size, {} if kept is None else kept
    return np.stack(
        [
            scoring.split_logits(_kept(run, kept, k), *own, alpha, data, edges, size)
            for k in range(count(settings))
            for own in [member(settings, trainable, frozen, k)]
        ]
    )


def _kept(run: scoring.Forward, kept: dict[int, Adapter], k: int) -> scoring.Forward:
    """Return the functions of member k, with an adapter that is made once and kept."""

    def adapt(params: Params, alpha: jax.Array, conditions: Batch) -> Adapter:
        if conditions:
            return run.adapt(params, alpha, conditions)
        if k not in kept:
            kept[k] = run.adapt(params, alpha, conditions)
        return kept[k]

    return run._replace(adapt=adapt)


def pool(
    settings: Settings, trainable: Params, logits_KNY: np.ndarray
) -> tuple[np.ndarray, float]:
    """Average the members: return (logits (N, Y), temperature).

    softmax(logits / temperature) is the average of the members' probabilities.
    """
    t_K = temperatures(settings, trainable)
    return pooling.pool(logits_KNY, t_K), float(t_K[0])
