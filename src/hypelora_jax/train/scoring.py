"""Logits and metrics of a split: the adapter is made once, then used batch by batch."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from hypelora_jax import trees
from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.calibrators import softmax
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.data.batches import Dataset, NumpyBatch, eval_batches
from hypelora_jax.data.tasks import Task
from hypelora_jax.model import Model
from hypelora_jax.objectives import training_loss
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import (
    fitting_batch_size,
    own_rows,
    put_batch,
    replicated,
)
from hypelora_jax.train.checkpoint.selection import Selection
from hypelora_jax.types import Params


class Forward(NamedTuple):
    """Jitted: `adapt(params, alpha) -> lora`, `classify(params, lora, rows)`.

    Parameters and rows are used where they are; logits come back whole to every
    process.
    """

    adapt: Callable
    classify: Callable
    mesh: Mesh


def forward(model: Model, mesh: Mesh) -> Forward:
    """Inference functions, compiled once per bucket; nothing is donated."""

    def adapt(params: Params, alpha: jax.Array):
        lora = model.predictor.adapt(params, {}, alpha, None)
        return rules.pin_factors(lora, mesh)

    def classify(params: Params, lora, batch):
        return model.predictor.classify(params, lora, batch, None)

    classify = jax.jit(rules.over(mesh, classify), out_shardings=replicated(mesh))
    return Forward(jax.jit(adapt), classify, mesh)


def logits(
    run: Forward,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    batches: Iterable[NumpyBatch],
    n: int,
) -> np.ndarray:
    """Raw logits (N, Y), float32 or wider, each example exactly once.

    Of several processes each brings its own rows of the batches and gets all logits.
    """
    params = trees.union(trainable, frozen)
    lora = run.adapt(params, np.asarray(alpha))
    out = None
    for batch in batches:
        rows = put_batch(batch, run.mesh, ("ids", "mask", "types"))
        got = np.asarray(run.classify(params, lora, rows))
        if out is None:
            out = np.full((n, got.shape[1]), np.nan, got.dtype)
        real = batch["index"] >= 0
        out[batch["index"][real]] = got[real]
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
    """Raw logits (N, Y) of a split; the batch grows to what the mesh can cut."""
    size = fitting_batch_size(batch_size, run.mesh)
    own = own_rows(size, run.mesh)
    batches = eval_batches(data, edges, size, own=own)
    return logits(run, trainable, frozen, alpha, batches, len(data.ids))


def labelled(label_N: np.ndarray) -> np.ndarray:
    """Which examples have a label: not -1 (classes), not NaN (regression)."""
    if np.issubdtype(label_N.dtype, np.floating):
        return ~np.isnan(label_N)
    return label_N >= 0


def judge(
    task: Task,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    temperature: float = 1.0,
    soft_NY: np.ndarray | None = None,
) -> dict[str, Any]:
    """Metrics of a split in float64: task scores, and calibration for classes.

    `temperature` divides the logits. Examples without a label are left out; with none
    left the result is empty. A regression gives n, mse and its correlations. `soft_NY`,
    shares of raters, adds the distances to them.
    """
    keep = labelled(label_N)
    z, y = np.asarray(logits_NY, np.float64)[keep], label_N[keep]
    if not len(y):
        return {}
    if task.kind == "regression":
        mse = float(np.mean((z[:, 0] - y.astype(np.float64)) ** 2))
        return {"n": len(y), "mse": mse, **scores.table(task.metrics, z[:, 0], y)}
    soft_NY = None if soft_NY is None else soft_NY[keep]
    return judge_probs(task, softmax(z, temperature), y, soft_NY)


def judge_probs(
    task: Task,
    probs_NY: np.ndarray,
    label_N: np.ndarray,
    soft_NY: np.ndarray | None = None,
) -> dict[str, Any]:
    """Metrics and task scores of probabilities in float64, every example labelled."""
    if not len(label_N):
        return {}
    out = metrics.compute_all(probs_NY, label_N, soft=soft_NY)
    return {**out, **scores.table(task.metrics, np.argmax(probs_NY, axis=1), label_N)}


def selection_loss(judged: dict[str, Any]) -> float:
    """What models are chosen by: NLL in nats, squared error for a regression."""
    return judged["nll"] if "nll" in judged else judged["mse"]


def selection(
    select_on: str, task: Task, step: int, judged: dict[str, Any]
) -> Selection:
    """How the epoch that ends with a step ranks among the others, by config.select_on.

    By score the earliest of equals is the best, as in the paper's tables.
    """
    loss = selection_loss(judged)
    if select_on == "last":
        return Selection(-float(step), loss)
    if select_on == "validation_score":
        return Selection(1e-12 * step - judged[scores.main(task.metrics)], loss)
    return Selection(loss, loss)


def train_temperature(trainable: Params) -> float:
    """The learned training temperature, 1 where none is learned."""
    return float(training_loss.temperature_of(trainable.get("loss", {})))
