"""One training step: makes the adapter once, runs micro-batches, updates once.

The gradient with respect to the adapter is summed over micro-batches (and over devices)
before it is pulled back through the hyper-network. The traffic between devices
therefore grows with the adapter and not with the network that makes it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hypelora_jax import trees
from hypelora_jax.adapters.lora import has_conditions
from hypelora_jax.keys import named_keys
from hypelora_jax.model import Model
from hypelora_jax.objectives import training_loss
from hypelora_jax.sharding import compiler, rules
from hypelora_jax.sharding.mesh import (
    PACKED_NAMES,
    ROW_NAMES,
    pin_batch,
    replicated,
)
from hypelora_jax.train import ensembles
from hypelora_jax.train.optimizer import Schedule
from hypelora_jax.train.state import TrainState
from hypelora_jax.types import Adapter, Batch, Lora, Params

Info = dict[str, jax.Array]
# Subtrees that `classify` and the loss read; `adapt` reads the rest.
DIRECT = ("backbone", "head", "loss")


def _pick(tree: Params, direct: bool) -> Params:
    return {n: x for n, x in tree.items() if (n in DIRECT) == direct}


def _cut(tree: Any, parts: int, axis: int = 0) -> Any:
    """Split `axis` of every leaf into `parts` equal pieces, stacked on a new axis 0."""

    def cut(x: jax.Array) -> jax.Array:
        shape = (*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    return jax.tree.map(cut, tree)


def _joined(tree: Any, axis: int) -> Any:
    """Undo `_cut`."""

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(join, tree)


def gradients(
    model: Model, accumulate: int, deterministic: bool, mesh: Mesh | None = None
) -> Callable[..., tuple[jax.Array, jax.Array, Params]]:
    """Build `grads(trainable, frozen, batch, alpha, keys) -> (loss, weight, gradient)`.

    The loss is the weighted mean over the batch. The sums are divided once, at the end,
    so padding rows count nothing and each micro-batch counts by its weight.

    With a mesh the adapter and its gradient are pinned to the devices of its kernels.
    The gradient is then summed over devices before it is pulled back through the
    hyper-network.
    """
    of_examples = (*model.objective.reads, *model.parts.head.reads)

    def micro_sums(direct: Params, lora: Lora, frozen: Params, rows: Batch, key):
        params, rows = trees.union(direct, frozen), dict(rows)
        # `row` travels with the rows, so that it is cut into micro-batches like them
        adapter = Adapter(lora, rows.pop("row", None))
        if "first" in rows:  # of a packed batch, one row of the loss per example
            rows |= {n: rows[n].reshape(-1, *rows[n].shape[2:]) for n in of_examples}
        key = None if deterministic else key
        return model.objective.sums(model, params, adapter, rows, key)

    # the backbone pins its hidden states, for which it must know the mesh; a condition
    # may be a state of the backbone
    on_mesh = rules.over(mesh, model.adapt)
    value_and_grads = jax.value_and_grad(
        rules.over(mesh, micro_sums), argnums=(0, 1), has_aux=True
    )
    summed = _over_micros(value_and_grads, accumulate, mesh)
    of_rows = (*ROW_NAMES, *PACKED_NAMES, *of_examples)

    def grads(trainable: Params, frozen: Params, batch: Batch, alpha, keys: dict):
        adapt_key = None if deterministic else keys["adapt"]

        def adapt(adapting: Params) -> tuple[Lora, jax.Array | None]:
            params = trees.union(adapting, frozen)
            lora, row_B = on_mesh(params, batch, alpha, adapt_key)
            return lora if mesh is None else rules.pin_factors(lora, row_B, mesh), row_B

        # `jax.vjp` instead of `jax.grad`: the adapter is made once, every micro-batch
        # uses it, and their summed gradient goes back through the network once.
        lora, pull, row_B = jax.vjp(adapt, _pick(trainable, direct=False), has_aux=True)
        rows = {name: batch[name] for name in of_rows if name in batch}
        if row_B is not None:
            rows["row"] = row_B
        (loss, weight), (d_direct, d_lora) = summed(
            _pick(trainable, direct=True), lora, frozen, rows, keys["rows"]
        )
        (d_adapting,) = pull(d_lora)
        scale = 1 / jnp.maximum(weight, 1e-9)  # a batch of padding only has weight 0
        gradient = jax.tree.map(lambda g: g * scale, {**d_direct, **d_adapting})
        return loss * scale, weight, gradient

    return grads


def _over_micros(
    value_and_grads: Callable, accumulate: int, mesh: Mesh | None
) -> Callable:
    """Turn `value_and_grads` of one micro-batch into a function that sums over all.

    If the conditions are groups of rows, their factors are cut like the rows, and the
    gradients of the factors are joined again. The gradient of any other adapter is
    summed.
    """
    if accumulate == 1:
        return value_and_grads

    def summed(direct: Params, lora: Lora, frozen: Params, batch: Batch, key):
        batch = dict(batch)
        several = _groups(lora, batch)
        own = several % accumulate == 0 and several > 0
        if several and not own:
            # a group may lie in several micro-batches: give each row the index of its
            # group, and every micro-batch all factors
            size = len(batch["ids"]) // several
            batch["row"] = jnp.repeat(jnp.arange(several, dtype=jnp.int32), size)
        pieces = _cut(lora, accumulate, axis=1) if own else {}  # axis 1 is U
        micros = _cut(batch, accumulate)
        if mesh is not None:
            # without it the compiler may shard the scan's axis, not the rows, over
            # devices
            rows = NamedSharding(mesh, P(None, *rules.BATCH))
            micros = jax.lax.with_sharding_constraint(micros, rows)
        xs = (micros, jax.random.split(key, accumulate), pieces)

        def micro(rows, key, piece):
            return value_and_grads(direct, piece if own else lora, frozen, rows, key)

        def parted(result: tuple) -> tuple:  # (summed part, part kept per micro-batch)
            sums, (d_direct, d_lora) = result
            summed_lora, kept = ({}, d_lora) if own else (d_lora, {})
            return (sums, (d_direct, summed_lora)), kept

        def body(total, x):
            result, kept = parted(micro(*x))
            return jax.tree.map(jnp.add, total, result), kept

        first = jax.tree.map(lambda x: x[0], xs)
        shapes, _ = jax.eval_shape(lambda x: parted(micro(*x)), first)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (sums, (d_direct, d_lora)), kept = jax.lax.scan(body, zero, xs)
        return sums, (d_direct, _joined(kept, axis=1) if own else d_lora)

    return summed


def _groups(lora: Lora, batch: Batch) -> int:
    """Return U if the conditions are groups of rows in order, else 0."""
    if "row" in batch or not has_conditions(lora):
        return 0
    return jax.tree.leaves(lora)[0].shape[1]


def _updated(
    tx: optax.GradientTransformation,
    state: TrainState,
    gradient: Params,
    keep: jax.Array | None,
) -> TrainState:
    """Return the next state; if `keep` is False, only its step number changes."""
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if keep is not None:
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
    return TrainState(state.step + 1, params, opt_state, state.key)


def build_step(
    model: Model,
    tx: optax.GradientTransformation,
    alpha: Schedule,
    mesh: Mesh,
    *,
    accumulate: int = 1,
    deterministic: bool = False,
    temperature: Schedule | None = None,
    skip_nonfinite: bool = False,
    conditions: int = 1,
    seeds: int = 1,
    shardings: tuple[TrainState, Params] | None = None,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Info]]:
    """Build the jitted function `step(state, frozen, batch) -> (state, info)`.

    Shardings are pinned, so that the new state has the shardings of the old one and the
    step is compiled only once per bucket. The state is donated, so that the new one
    reuses its memory; the caller must not use the old state again.

    Args:
      shardings: of each leaf of state and frozen, from `train.state.state_shardings`
        and `sharding.rules.shardings`; None places both whole on every device.
      accumulate: number of micro-batches that the batch is cut into.
      deterministic: no dropout, as in the golden runs of the reference.
      temperature: loss temperature by step, if it anneals; micro-batches share it.
      skip_nonfinite: a step whose loss or gradient is not finite (info["finite"] is
        False) changes neither parameters nor optimizer, but its number still grows.
      conditions: number of members of a hyper-ensemble; each row goes to one of them.
      seeds: members of a deep ensemble, each trained on every row.
    """
    grads = gradients(model, accumulate, deterministic, mesh)

    def step(
        state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, Info]:
        # the base key stays; the step is folded in, so a resumed run draws the same
        keys = named_keys(state.key, state.step, "adapt", "rows")
        batch = pin_batch(batch, mesh)
        if temperature is not None:
            now = training_loss.at_temperature(temperature(state.step))
            frozen = trees.union(frozen, now)  # as if T were a frozen parameter
        if conditions > 1:
            batch = ensembles.dealt(batch, state.step, conditions)
        share = alpha(state.step)
        loss, weight, gradient = grads(state.params, frozen, batch, share, keys)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = _updated(tx, state, gradient, finite if skip_nonfinite else None)
        info = {"loss": loss, "weight": weight, "grad_norm": norm, "finite": finite}
        return new, info

    of_state, of_frozen = shardings or (replicated(mesh),) * 2
    return jax.jit(
        ensembles.over_seeds(step) if seeds > 1 else step,
        in_shardings=(of_state, of_frozen, None),  # `pin_batch` places the batch
        out_shardings=(of_state, replicated(mesh)),
        donate_argnames=("state",),
        compiler_options=compiler.options(mesh),
    )
