"""What changes while a run trains: state, data and progress, as the loop uses them."""

from typing import Any

import jax
import numpy as np
import optax

from hypelora_jax import trees
from hypelora_jax.data.batches import Dataset, NumpyBatch
from hypelora_jax.data.class_weights import example_weights
from hypelora_jax.data.iterator import train_iterator
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import (
    batch_size_per_device,
    own_rows,
    put_batch,
    row_ways,
)
from hypelora_jax.train import ensembles, scoring
from hypelora_jax.train.checkpoint.checkpoints import Checkpoint, Checkpoints
from hypelora_jax.train.checkpoint.selection import Progress, Selection
from hypelora_jax.train.conditioning import recovery, task_conditions
from hypelora_jax.train.divergence import Guard, all_finite, last_good
from hypelora_jax.train.interruption import StopRequest
from hypelora_jax.train.optimizer import (
    blend_alpha,
    learning_rate,
    loss_temperature,
    optimizer,
)
from hypelora_jax.train.session import Session, keys, train_keys
from hypelora_jax.train.state import TrainState, state_shardings
from hypelora_jax.train.step import build_step
from hypelora_jax.types import Batch, Params


class Training:
    """State, data and progress of a session that trains; the loop advances them."""

    def __init__(self, session: Session, checkpoints: Checkpoints, stop: StopRequest):
        settings = session.settings
        self.session, self.checkpoints = session, checkpoints
        self.optim = settings.optim
        self.alpha = blend_alpha(
            settings.blend, session.total_steps, settings.optim.accumulate
        )
        self.abstract = abstract_state(session)
        self.state: TrainState = self.abstract  # shapes until `resume` or `fresh`
        rate = learning_rate(settings.optim, session.total_steps)
        # one program for the log, where each operation would otherwise be one
        self.schedules = jax.jit(lambda s: {"lr": rate(s), "alpha": self.alpha(s)})
        self.temperature = loss_temperature(settings.loss, session.total_steps)
        size = _rows(session)
        self.step = build_step(
            session.model,
            _optimizer(session),
            self.alpha,
            session.mesh,
            accumulate=self.optim.accumulate,
            temperature=self.temperature,
            skip_nonfinite=self.optim.skip_nonfinite > 0,
            conditions=settings.uncertainty.conditions,
            seeds=settings.uncertainty.seeds,
            shardings=jax.tree.map(
                lambda x: x.sharding, (self.abstract, session.frozen)
            ),
        )
        classify = stop.between(session.forward.classify)
        self.forward = session.forward._replace(classify=classify)
        self.frozen = session.frozen
        train, soft = session.datasets["train"], settings.loss.labels == "soft"
        self.data = train_iterator(
            train,
            session.edges,
            self.optim.batch_size,
            keys(settings).data,
            self.optim.num_epochs,
            soft=soft,
            own=own_rows(size, session.mesh),
            weight_N=example_weights(
                session.class_weights, train.label, train.soft if soft else None
            ),
            packed=session.packed,
            tasks=session.plan,
            place=self._place,
        )
        self.lengths = train.lengths
        self.progress = Progress()
        self.pending_judge = False  # True if an epoch ended and was not evaluated
        self.guard = self._guard()

    def _place(self, batch: NumpyBatch) -> tuple[np.ndarray, Batch]:
        """Return the examples of a batch, of all processes, and its placed arrays."""
        index = batch["index"]
        return index[index >= 0], put_batch(batch, self.session.mesh)

    def _guard(self) -> Guard:
        limit, latest = self.optim.skip_nonfinite, self.checkpoints.latest_settled
        return Guard(limit, self.progress.skipped, latest)

    def fresh(self) -> None:
        """Go to the state before the first step."""
        self.state = first_state(self.session, self.abstract)

    def resume(self) -> int:
        """Restore the newest valid checkpoint and return its step, or 0 without any.

        Arrays are placed on this run's mesh, whatever mesh they were saved from.
        """
        step = self.checkpoints.newest()
        if step is None:
            self.fresh()
            return 0
        own = extras(self.frozen)
        got = self.checkpoints.restore(
            step, self.abstract, own, Progress._fields, self.data
        )
        self.state = got.state
        self.frozen = with_extras(self.frozen, got.frozen)
        best, bad, skipped = (got.progress[name] for name in Progress._fields)
        self.progress = Progress(best, int(bad), int(skipped))
        self.guard = self._guard()
        if step % self.session.steps_per_epoch == 0:
            chosen = self.checkpoints.selection(step)
            self.pending_judge = chosen is None
            if chosen is not None:
                self.progress = self.progress.after(chosen.loss)
        return step

    def save(self) -> None:
        """Begin to save the state, if every parameter in it is finite.

        Raises:
          UserError: a parameter is not finite, or the save before this one failed.
        """
        self.guard.settle()
        if not all_finite(self.state.params):
            raise UserError(
                f"the parameters are not finite after step {int(self.state.step)}; "
                f"{last_good(self.checkpoints.latest_settled())}. Lower "
                "config.optim.lr, or raise optim.warmup"
            )
        self.progress = self.progress._replace(skipped=self.guard.skipped)
        own, progress = extras(self.frozen), self.progress._asdict()
        self.checkpoints.save(self.state, own, self.data, progress)

    def judge(self, split: str, trainable: Params, alpha: jax.Array) -> dict[str, Any]:
        """Compute the metrics of a split, without a calibrator fitted after training.

        With conditions of tasks, the calibration split also has their `margin`: how
        much larger the mean loss of the tasks is with the condition of another task. If
        adapters are learned, it has their R^2 and cosine.

        Raises:
          UserError: the logits are not finite.
        """
        session = self.session
        data = session.datasets[split]
        logits_NY, t = self._logits(split, data, trainable, alpha)
        objective = session.model.objective
        judged = scoring.judge(objective, logits_NY, data.label, t, data.soft)
        judged |= scoring.task_mean(objective, logits_NY, data, t)
        tasks, names = session.tasks, session.task_set
        if split == "calibration":
            judged |= recovery.of_log(session, trainable, self.frozen, alpha)
        if split != "calibration" or names is None or not (tasks and tasks.conditions):
            return judged
        others = task_conditions.shuffled(tasks, names, keys(session.settings).data)
        data = data._replace(tasks=others)
        wrong_NY, _ = self._logits(split, data, trainable, alpha)
        wrong = scoring.task_mean(objective, wrong_NY, data, t)
        unit = f"task_{objective.unit}"
        return judged | {"margin": wrong[unit] - judged[unit]}

    def _logits(
        self, split: str, data: Dataset, trainable: Params, alpha: jax.Array
    ) -> tuple[np.ndarray, float]:
        """Return raw logits (N, Y) and the temperature that divides them."""
        session = self.session
        own_KNY = ensembles.split_logits(
            session.settings,
            self.forward,
            trainable,
            self.frozen,
            alpha,
            data,
            session.edges,
        )
        if not np.isfinite(own_KNY).all():
            raise UserError(
                f"the logits of {split} are not finite at step "
                f"{int(self.state.step)}; the run diverged. Lower config.optim.lr, or "
                "raise optim.warmup"
            )
        return ensembles.pool(session.settings, trainable, own_KNY)


def _rows(session: Session) -> int:
    """Return the number of rows of a step.

    Raises:
      UserError: they cannot be divided evenly among the devices.
    """
    optim, packed = session.settings.optim, session.packed
    if packed is None:
        batch_size_per_device(optim.batch_size // optim.accumulate, session.mesh)
        return optim.batch_size
    micro, ways = packed.rows // optim.accumulate, row_ways(session.mesh)
    if micro % ways:
        raise UserError(
            f"the run was begun with {micro} packed rows a micro-batch, which the "
            f"{ways} devices along data and fsdp do not divide; expected a number of "
            "devices that does. Use fewer devices"
        )
    return packed.rows


def rank(session: Session, step: int, judged: dict[str, Any]) -> Selection:
    """Rank the epoch that ends with a step among the others."""
    unit, names = session.model.objective.unit, session.task.metrics
    return scoring.selection(session.settings.select_on, unit, names, step, judged)


def abstract_state(session: Session) -> TrainState:
    """Return shapes and shardings of a session's state, to read a checkpoint into."""
    tx, seeds = _optimizer(session), train_keys(session.settings)
    shapes = jax.eval_shape(lambda p: ensembles.start(p, tx, seeds), session.trainable)
    where = state_shardings(shapes, tx, session.mesh, session.family.shardings)
    return rules.placed(shapes, where)


def first_state(session: Session, abstract: TrainState) -> TrainState:
    """Make the state before the first step, with the shardings of `abstract`."""
    tx = _optimizer(session)

    def make(trainable: Params, data: jax.Array) -> TrainState:
        own = [jax.random.wrap_key_data(one) for one in data]
        return ensembles.start(trainable, tx, own)

    seeds = train_keys(session.settings)
    data = np.stack([np.asarray(jax.random.key_data(key)) for key in seeds])
    where = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(make, out_shardings=where)(session.trainable, data)


def _optimizer(session: Session) -> optax.GradientTransformation:
    return optimizer(session.settings.optim, session.total_steps)


OTHER_FILES = ("backbone", "targets")  # frozen leaves that checkpoints do not have


def extras(frozen: Params) -> Params:
    """Return the frozen leaves that a checkpoint contains: all but OTHER_FILES."""
    return {name: tree for name, tree in frozen.items() if name not in OTHER_FILES}


def with_extras(frozen: Params, own: Params) -> Params:
    """Replace the frozen leaves, except OTHER_FILES, with those of a checkpoint."""
    others = {name: frozen[name] for name in OTHER_FILES if name in frozen}
    return trees.union(others, own)


def chosen(session: Session, checkpoints: Checkpoints) -> Checkpoint:
    """Read the best checkpoint of a run, and add the session's frozen backbone to it.

    Raises:
      UserError: there is no complete checkpoint.
    """
    step = checkpoints.best()
    if step is None:
        raise UserError(
            f"{checkpoints.directory.parent} has no complete checkpoint; expected a "
            "run trained for at least one epoch. Run hypelora train with the same "
            "--workdir"
        )
    own = extras(session.frozen)
    got = checkpoints.restore(step, abstract_state(session), own)
    return got._replace(frozen=with_extras(session.frozen, got.frozen))


def open_checkpoint(session: Session, run: Run) -> Checkpoint:
    """Read the best checkpoint of a run folder that is not in training."""
    with Checkpoints(run) as checkpoints:
        return chosen(session, checkpoints)
