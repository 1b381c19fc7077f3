"""What a few labelled rows change in the adapter of a described task.

Either its condition alone is tuned, through the frozen network that writes the factors,
as HyperFormer's task embeddings are (Mahabadi et al. 2021), or its temperature alone.
The rest of the adapter is what the description makes of it.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import scipy.optimize
from absl import logging
from tqdm.auto import tqdm

from hypelora_jax import trees
from hypelora_jax.calibration import calibrators
from hypelora_jax.calibration.calibrators import Temperature
from hypelora_jax.calibration.metrics import likelihood
from hypelora_jax.data.batches import Dataset, collate
from hypelora_jax.data.sources import user_files
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate.fitted import Fitted, tokenised
from hypelora_jax.objectives.losses import widen
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import ROW_NAMES, fitting_batch_size
from hypelora_jax.train.conditioning import task_conditions
from hypelora_jax.types import Batch, Params

MIN_ROWS = 8
FOLDS = 4  # parts of the rows that are left out in turn
ROWS = 16  # of a step; drawn anew for each step if there are more
JUDGED = 64  # most rows that are judged when they are left out
STEPS, EVERY = 200, 10  # most steps, and steps between two looks at rows left out
PATIENCE = 5  # looks without a lower loss after which tuning ends
RATE, DECAY = 0.02, 0.01  # of AdamW, in deviations of the training descriptions
SPREAD = 0.5  # deviation of log T that is expected between tasks


class Tuned(NamedTuple):
    """The condition and calibrator after tuning, and what config.json says about it."""

    vector: np.ndarray
    calibrator: Any
    about: dict[str, Any]


def examples(path: str, task: Task) -> Table:
    """Read labelled rows of a task from a file.

    Raises:
      UserError: the file or a row cannot be used, there are fewer than MIN_ROWS rows,
        or all have the same label.
    """
    table = user_files.labelled(path, task)
    if (n := len(table.label)) < MIN_ROWS:
        raise UserError(
            f"{path} has {n} labelled rows; expected at least {MIN_ROWS} to tune on. "
            "Give more, or leave --examples out"
        )
    if len(np.unique(table.label)) < 2:
        raise UserError(
            f"all {n} rows of {path} have the label {task.labels[table.label[0]]}; "
            "expected rows of two or more labels"
        )
    return table


def condition(
    source: Fitted, made: Fitted, head: Params, vector_C: np.ndarray, table: Table
) -> Tuned:
    """Tune the condition by AdamW on its offset; decay pulls it to the description.

    Four conditions are tuned as well, each without a fourth of the rows, in the same
    batches. The number of steps is the one with the smallest loss on rows left out. If
    that is not smaller than before the first step by more than one standard error of
    the paired difference over rows, the condition stays as it is: the rows must
    show that they help with rows like them.

    Args:
      source: the run whose network writes the adapter.
      made: the adapter as a model.
      head: its head, without the sign of the condition.
      vector_C: its condition.
      table: labelled rows.
    """
    n = len(table.label)
    rng = np.random.default_rng([source.session.settings.seed, n])
    groups = Groups(tokenised(made, table), rng, source.session.mesh)
    gradients = _gradients(source, made, head, vector_C)
    kept, losses = _descent(groups, gradients, len(vector_C))
    best = chosen(losses)
    if not best:
        logging.warning(
            "tuning on %d rows does not lower the loss on rows left out by more than "
            "its standard error, so the condition stays that of the description",
            n,
        )
    before, after = (float(losses[i].mean()) for i in (0, best))
    about = {"steps": best * EVERY, "left_out": {"before": before, "after": after}}
    tuned_C = vector_C + _scale(source) * kept[best]
    return Tuned(tuned_C, made.calibrator, about)


def chosen(losses: Sequence[np.ndarray]) -> int:
    """Return the index of the smallest mean loss of rows left out.

    It is 0, that of no steps, unless the mean gain over it is above its standard error.

    Args:
      losses: (M,) of the same rows, before the first step and after more and more.
    """
    best = int(np.argmin([one.mean() for one in losses]))
    gain = losses[0] - losses[best]
    return best if gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)) else 0


def _descent(
    groups: "Groups", gradients: Callable, width: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the offset (C,) and the losses of rows left out (M,), every few steps.

    The first of each are those before the first step.
    """
    tx = optax.adamw(RATE, weight_decay=DECAY)
    u_UC = np.zeros((FOLDS + 1, width), np.float32)
    state = tx.init(u_UC)

    @jax.jit
    def update(u_UC: jax.Array, state: Any, grads_UC: jax.Array) -> tuple:
        changes, state = tx.update(grads_UC, state, u_UC)
        return optax.apply_updates(u_UC, changes), state

    kept, losses = [u_UC[-1]], [groups.left_out(gradients, u_UC)]
    look = {"disable": not sys.stderr.isatty(), "dynamic_ncols": True}
    with tqdm(total=STEPS, desc="tune", file=sys.stderr, **look) as bar:
        for step in range(1, STEPS + 1):
            grads_UC, _ = gradients(u_UC, groups.batch(groups.draw()))
            u_UC, state = update(u_UC, state, grads_UC)
            bar.update()
            if step % EVERY:
                continue
            kept.append(np.asarray(u_UC[-1]))
            losses.append(groups.left_out(gradients, u_UC))
            means = [one.mean() for one in losses]
            bar.set_postfix_str(f"loss of rows left out {means[-1]:.3f}")
            if len(means) - 1 - int(np.argmin(means)) >= PATIENCE:
                break
    return kept, losses


class Groups:
    """Batches of FOLDS + 1 groups of the same rows.

    Group u learns from the rows that are not in fold u, and the last one from all.
    """

    def __init__(self, data: Dataset, rng: np.random.Generator, mesh: Any):
        self._data, self._rng = data, rng
        n = len(data.label)
        # dealt class by class, so that every fold has about the same shares
        order = np.lexsort((rng.permutation(n), data.label))
        self._fold_N = np.empty(n, int)
        self._fold_N[order] = np.arange(n) % FOLDS
        self._rows = min(n, ROWS)
        self._size = fitting_batch_size(self._rows, mesh)
        self._length = int(data.lengths.max())
        self._judged = np.sort(rng.permutation(n)[:JUDGED])

    def draw(self) -> np.ndarray:
        """Return the rows of a step."""
        return self._rng.choice(len(self._fold_N), self._rows, replace=False)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return a batch of the rows; `weight` makes a mean loss of each group."""
        one = collate(self._data, rows, self._length, self._size)
        at_U = np.arange(FOLDS + 1)
        learns_UB = self._fold_N[one["index"]] != at_U[:, None]
        weight_UB = learns_UB * one["weight"]
        weight_UB = weight_UB / np.maximum(weight_UB.sum(1, keepdims=True), 1)
        own = {n: np.concatenate([one[n]] * len(at_U)) for n in (*ROW_NAMES, "label")}
        own["row"] = np.repeat(at_U, self._size).astype(np.int32)
        return own | {"weight": weight_UB.reshape(-1).astype(np.float32)}

    def left_out(self, gradients: Callable, u_UC: Any) -> np.ndarray:
        """Return the loss of rows (M,), each by the group that has not seen it."""
        out = []
        for start in range(0, len(self._judged), self._rows):
            rows = self._judged[start : start + self._rows]
            _, loss_UB = gradients(u_UC, self.batch(rows))
            out.append(np.asarray(loss_UB)[self._fold_N[rows], np.arange(len(rows))])
        # float32 may round the loss of a sure answer to less than 0
        return np.maximum(np.concatenate(out).astype(np.float64), 0)


def _gradients(
    source: Fitted, made: Fitted, head: Params, vector_C: np.ndarray
) -> Callable:
    """Return the function from offsets (U, C) and a batch to gradients and losses.

    The losses (U, B) are at the temperature of the adapter, in nats.
    """
    writer, reader = source.session.model, made.session.model
    mesh, t = source.session.mesh, _temperature(made)
    start_1C, scale_1C = vector_C[None], _scale(source)[None]

    def total(
        u_UC: jax.Array, writing: Params, reading: Params, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        given = {"condition": start_1C + scale_1C * u_UC, "row": batch["row"]}
        adapter = writer.adapt(writing, given, source.alpha)
        z_BY = widen(reader.classify(reading, adapter, batch)) / t
        loss_B = optax.softmax_cross_entropy_with_integer_labels(z_BY, batch["label"])
        return (loss_B * batch["weight"]).sum(), loss_B.reshape(len(u_UC), -1)

    compiled = jax.jit(rules.over(mesh, jax.grad(total, has_aux=True)))
    writing = trees.union(source.trainable, source.frozen)
    writing = {n: x for n, x in writing.items() if n not in ("backbone", "head")}
    reading = {"backbone": made.frozen["backbone"], "head": head}
    return lambda u_UC, batch: compiled(u_UC, writing, reading, batch)


def _scale(source: Fitted) -> np.ndarray:
    """Return the deviation (C,) of each entry over the training descriptions."""
    tasks, arrays = source.session.task_set, source.session.tasks
    assert tasks is not None and arrays is not None  # a described task has a set
    _, std_C = task_conditions.moments(arrays, tasks)["cond/standard"]
    return std_C.astype(np.float32)


def temperature(
    source: Fitted, made: Fitted, head: Params, vector_C: np.ndarray, table: Table
) -> Tuned:
    """Tune the temperature that divides the logits.

    The loss is the summed NLL of the rows plus that of log T under a normal
    distribution around the run's, of deviation SPREAD: rows that are all answered
    right would else make T as small as it may be.

    Raises:
      UserError: the calibrator of the run is another one.
    """
    del head
    if not isinstance(made.calibrator, Temperature):
        raise UserError(
            f"{source.run.path} has the calibrator "
            f"{calibrators.kind(made.calibrator)}, which has no temperature to tune; "
            "expected --tune=condition, or hypelora calibrate --method=temperature "
            "first"
        )
    logits_NY = made.answer(tokenised(made, table)).logits.astype(np.float64)
    old = made.calibrator.temperature

    def total(log_t: float) -> float:
        probs_NY = calibrators.softmax(logits_NY, math.exp(log_t))
        nll = len(table.label) * float(likelihood.nll(probs_NY, table.label))
        return nll + (log_t - math.log(old)) ** 2 / (2 * SPREAD**2)

    around = (math.log(old) - 4, math.log(old) + 4)
    found = scipy.optimize.minimize_scalar(total, bounds=around, method="bounded")
    new = math.exp(found.x)
    about = {"temperature": {"before": old, "after": new}}
    return Tuned(vector_C, Temperature(new, n=len(table.label)), about)


def _temperature(made: Fitted) -> float:
    """Return what divides the logits; the training temperature if no number does."""
    found = made.calibrator
    return found.temperature if isinstance(found, Temperature) else made.uncalibrated


Change = Callable[[Fitted, Fitted, Params, np.ndarray, Table], Tuned]
TUNED: dict[str, Change] = {"condition": condition, "temperature": temperature}


def loss(made: Fitted, table: Table) -> float:
    """Return the mean NLL of rows in nats, by the probabilities that are answered."""
    logits_NY = made.answer(tokenised(made, table)).logits.astype(np.float64)
    probs_NY = calibrators.apply(made.calibrator, logits_NY)
    return float(likelihood.nll(probs_NY, table.label))
