"""Logits and metrics of a split: the adapter is made once, then used batch by batch."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from hypelora_jax import model as model_lib
from hypelora_jax import trees
from hypelora_jax.adapters import sign
from hypelora_jax.calibration.calibrators import softmax
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.data.batches import Dataset, NumpyBatch, eval_batches
from hypelora_jax.model import Model
from hypelora_jax.sharding import compiler, rules
from hypelora_jax.sharding.mesh import (
    PACKED_NAMES,
    ROW_NAMES,
    fitting_batch_size,
    own_rows,
    put_batch,
    replicated,
)
from hypelora_jax.train.checkpoint.selection import Selection
from hypelora_jax.types import Adapter, Batch, Objective, Params, Probabilities


class Forward(NamedTuple):
    """Jitted `adapt(params, alpha, conditions)` and `classify(params, adapter, rows)`.

    `conditions` are the batch entries that `reads` names. If it names none, one adapter
    serves all batches. `rows` names the entries that `classify` reads. Parameters and
    rows are used where they are; every process gets all logits.
    """

    adapt: Callable
    classify: Callable
    mesh: Mesh
    reads: tuple[str, ...] = ()
    rows: tuple[str, ...] = ROW_NAMES


def rows_of(model: Model) -> tuple[str, ...]:
    """Return the entries that `classify` reads of a batch that is not packed."""
    return (*ROW_NAMES, *model.parts.head.reads)


def forward(model: Model, mesh: Mesh) -> Forward:
    """Build the inference functions, compiled once per bucket.

    No buffer is donated, because parameters and adapter are used again.
    """

    def adapt(params: Params, alpha: jax.Array, conditions: Batch) -> Adapter:
        return pinned(model.adapt(params, conditions, alpha, None), mesh)

    def classify(params: Params, adapter: Adapter, batch: Batch) -> jax.Array:
        return model.classify(params, adapter, batch, None)

    classify = jax.jit(
        rules.over(mesh, classify),
        out_shardings=replicated(mesh),
        compiler_options=compiler.options(mesh),
    )
    adapt = jax.jit(rules.over(mesh, adapt))
    return Forward(adapt, classify, mesh, model.reads, rows_of(model))


def forward_of_rows(model: Model, mesh: Mesh) -> Forward:
    """Build inference functions for batches whose rows have different adapters.

    `adapt(params, alpha, {"row": row_B})` joins the stacked factors `params["lora"]`,
    a_LUIR and b_LURO, with the index of each row's adapter. `classify` gives each row
    that adapter's factors, and its head: leaves of `params["head"]` have a first axis
    U. A row's logits do not depend on the other rows.
    """

    def adapt(params: Params, alpha: jax.Array, conditions: Batch) -> Adapter:
        del alpha
        return Adapter(params["lora"], conditions["row"])

    def classify(params: Params, adapter: Adapter, batch: Batch) -> jax.Array:
        hidden_BTD = model_lib.hidden(model.parts, params, adapter, batch, None)
        heads = jax.tree.map(lambda x: x[adapter.row_B], params["head"])

        def one(head: Params, hidden_TD: jax.Array, row: Batch) -> jax.Array:
            own = {name: x[None] for name, x in row.items()}
            return model.parts.head.apply(head, hidden_TD[None], own)[0]

        logits_BY = jax.vmap(one)(heads, hidden_BTD, dict(batch))
        return sign.signed(logits_BY, adapter)

    classify = jax.jit(
        rules.over(mesh, classify),
        out_shardings=replicated(mesh),
        compiler_options=compiler.options(mesh),
    )
    return Forward(adapt, classify, mesh, ("row",), rows_of(model))


def pinned(adapter: Adapter, mesh: Mesh) -> Adapter:
    """Pin an adapter's factors, inside jit, to the devices of their kernels."""
    factors, row_B = adapter
    return Adapter(rules.pin_factors(factors, row_B, mesh), row_B)


def logits(
    run: Forward,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    batches: Iterable[NumpyBatch],
    n: int,
) -> np.ndarray:
    """Compute raw logits (N, Y), float32 or wider, of each example exactly once.

    With several processes, each passes its own rows of the batches and gets all logits.
    """
    params = trees.union(trainable, frozen)
    at = np.asarray(alpha)
    adapter = None if run.reads else run.adapt(params, at, {})
    out: np.ndarray | None = None
    for batch in batches:
        rows = put_batch(batch, run.mesh, (*run.rows, *PACKED_NAMES, *run.reads))
        if run.reads:
            own = {name: rows[name] for name in run.reads if name in rows}
            adapter = run.adapt(params, at, own)
            rows = {name: rows[name] for name in run.rows}
        got = np.asarray(run.classify(params, adapter, rows))
        if out is None:
            out = np.full((n, got.shape[1]), np.nan, got.dtype)
        index = batch["index"].reshape(-1)  # (B,), or (B P,) of packed rows
        out[index[index >= 0]] = got[index >= 0]
    if out is None:
        raise ValueError("there are no batches; expected at least one")
    return out


def split_logits(
    run: Forward,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    data: Dataset,
    edges: tuple[int, ...],
    batch_size: int,
) -> np.ndarray:
    """Compute raw logits (N, Y) of a split; batches grow to a size the mesh can cut."""
    size = fitting_batch_size(batch_size, run.mesh)
    own = own_rows(size, run.mesh)
    batches = eval_batches(data, edges, size, own=own)
    return logits(run, trainable, frozen, alpha, batches, len(data.ids))


def judge(
    objective: Objective,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    temperature: float = 1.0,
    soft_NY: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the objective's metrics of a split, in float64; {} without labels.

    `temperature` divides the logits. `soft_NY`, the shares of raters, adds metrics of
    the distance to them.
    """
    judge = objective.judge
    state = judge.update(judge.start(), logits_NY, label_N, soft_NY)
    return judge.result(state, partial(softmax, temperature=temperature))


def by_task(
    objective: Objective,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    task_N: np.ndarray,
    probabilities: Probabilities,
) -> dict[int, dict[str, Any]]:
    """Compute the objective's metrics of each task of a split, by its index."""
    states = _by_task(objective, logits_NY, label_N, task_N).items()
    return {task: objective.judge.result(x, probabilities) for task, x in states}


def _by_task(
    objective: Objective,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    task_N: np.ndarray | None,
) -> dict[int, Any]:
    """Return the state of the objective's judge for each task of a split."""
    if task_N is None:
        return {}
    out, own = {}, objective.judge
    for task in np.unique(task_N).tolist():
        at = task_N == task
        out[task] = own.update(own.start(), logits_NY[at], label_N[at])
    return out


def task_mean(
    objective: Objective, logits_NY: np.ndarray, data: Dataset, temperature: float
) -> dict[str, float]:
    """Return the mean over tasks of the metric that models are chosen by, if any."""
    states = _by_task(objective, logits_NY, data.label, data.task)
    probs = partial(softmax, temperature=temperature)
    loss_K = np.array([objective.judge.loss(x, probs) for x in states.values()])
    known_K = ~np.isnan(loss_K)  # of tasks that have labels
    if not known_K.any():
        return {}
    return {f"task_{objective.unit}": float(loss_K[known_K].mean())}


def selection(
    select_on: str, unit: str, names: Sequence[str], step: int, judged: dict[str, Any]
) -> Selection:
    """Rank the epoch that ends with a step among the others, by config.select_on.

    With `validation_score` the earliest of equal epochs is the best, as in the paper's
    tables.

    Args:
      select_on: the field of the config.
      unit: the metric that models are chosen by, as the objective says.
      names: names of the task's scores.
      step: number of finished steps.
      judged: metrics of the split that models are chosen on.
    """
    loss = judged.get(f"task_{unit}", judged[unit])  # tasks count alike
    if select_on == "last":
        return Selection(-float(step), loss)
    if select_on == "margin":
        return Selection(-judged["margin"], loss)
    if select_on == "validation_score":
        # the tiny term makes the earliest of equal epochs the best
        return Selection(1e-12 * step - judged[scores.main(names)], loss)
    return Selection(loss, loss)
