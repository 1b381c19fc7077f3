"""The state of training: everything that a step changes, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.types import Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Number of finished steps, trainable tree, optimizer state, base key.

    The key never changes: a step folds its number into it, so that a resumed run draws
    the same numbers as an uninterrupted one. Leaves are Any because a state may also
    contain shapes, shardings, or the axes that vmap maps over.
    """

    step: Any  # int32 ()
    params: Any  # Params
    opt_state: Any
    key: Any  # Key


def init_state(
    trainable: Params, tx: optax.GradientTransformation, key: Key
) -> TrainState:
    """Return the state before the first step.

    Every leaf is copied, because the state is donated to the step, which deletes its
    buffers. The arrays it was made from (the base model's head, a caller's key) must
    stay usable.
    """
    trainable = jax.tree.map(lambda x: jnp.array(x, copy=True), trainable)
    key = jax.random.wrap_key_data(jnp.array(jax.random.key_data(key), copy=True))
    return TrainState(jnp.zeros((), jnp.int32), trainable, tx.init(trainable), key)


def state_shardings(
    state: TrainState, tx: optax.GradientTransformation, mesh: Mesh, table: rules.Table
) -> TrainState:
    """Return the sharding of each leaf of a state (arrays or shape structs).

    Parameters follow the table of the family's backbone, the optimizer's moments
    follow their parameter; step, counters and key are whole on every device.
    """
    whole = replicated(mesh)
    params = rules.shardings(state.params, mesh, table)
    opt_state = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(whole, params, opt_state, whole)
