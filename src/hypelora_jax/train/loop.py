"""The training loop: steps, evaluation after each epoch, checkpoints, resume."""

import time

import jax
from absl import logging

from hypelora_jax.errors import UserError
from hypelora_jax.run.metric_log import MetricLog, summary
from hypelora_jax.run.metric_writers import Writers
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes
from hypelora_jax.train import ensembles
from hypelora_jax.train.checkpoint.checkpoints import Checkpoint, Checkpoints
from hypelora_jax.train.checkpoint.selection import Progress
from hypelora_jax.train.compilation.schedule import compiled_ahead
from hypelora_jax.train.interruption import Asked, StopRequest
from hypelora_jax.train.session import Session
from hypelora_jax.train.training import (
    Training,
    abstract_state,
    chosen,
    extras,
    first_state,
    rank,
)


class Throughput:
    """Examples and tokens per second since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new interval now."""
        self._start, self._examples, self._tokens = time.monotonic(), 0, 0

    def add(self, examples: int, tokens: int) -> None:
        """Count one batch; padding rows and padding tokens do not count."""
        self._examples += examples
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Return the rates of the interval, and start a new one."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rates = {
            "examples_per_s": round(self._examples / seconds, 2),
            "tokens_per_s": round(self._tokens / seconds, 1),
        }
        self.reset()
        return rates


def train(
    session: Session,
    run: Run,
    progress: bool = True,
    writers: Writers | None = None,
) -> tuple[Checkpoint, int]:
    """Train to the end, from the newest checkpoint if there is one.

    Args:
      session: a session with data.
      run: the folder that checkpoints and metrics are written to.
      progress: show a progress bar.
      writers: where scalars go in addition to metrics.jsonl; the caller closes them.

    Returns:
      The checkpoint chosen by config.select_on, and the number of epochs trained.

    Raises:
      KeyboardInterrupt, Preempted: the run was asked to stop; its state is saved.
      UserError: a loss is not finite, a checkpoint cannot be written, or a writer
        cannot start.
    """
    keep, total = session.settings.ckpt.keep, session.total_steps
    with Checkpoints(run, keep) as checkpoints, StopRequest() as stop:
        training = Training(session, checkpoints, stop)
        step = training.resume()
        if step:
            logging.info("going on from step %d of %d", step, total)
        judged = not training.pending_judge
        with (
            processes.together(
                lambda: MetricLog(run, step, total, progress, judged, writers)
            ) as log,
            compiled_ahead(training, log.note),
        ):
            try:
                _steps(training, log, stop, step)
            except Asked:
                checkpoints.wait()  # raises if the disk is full
                raise stop.error(int(training.state.step)) from None
        epochs = int(training.state.step) // session.steps_per_epoch
        return chosen(session, checkpoints), epochs


def begin(session: Session, run: Run) -> None:
    """Save the state of a session as step 0 of a run, from which training can start.

    Step 0 is ranked among the later epochs by its selection loss. A session without
    data saves only the parameters, which can be used but not trained.
    """
    settings = session.settings
    with Checkpoints(run, settings.ckpt.keep) as checkpoints:
        if "train" not in session.datasets:
            state = first_state(session, abstract_state(session))
            checkpoints.save(state, extras(session.frozen), None, Progress()._asdict())
            return
        with StopRequest(at_once=True) as stop:
            training = Training(session, checkpoints, stop)
            training.fresh()
            training.save()
            params, alpha = training.state.params, session.alpha_after(0)
            judged = training.judge(_split_of(settings.select_on), params, alpha)
        if judged:
            checkpoints.select(0, rank(session, 0, judged))


def _steps(training: Training, log: MetricLog, stop: StopRequest, step: int) -> None:
    """Run steps until the last one, early stopping, or a request to stop."""
    throughput, patience = Throughput(), training.optim.patience
    session, every = training.session, training.session.settings.ckpt.every_steps
    per_epoch = session.steps_per_epoch
    if training.pending_judge:  # the run was stopped in the evaluation of this epoch
        _end_epoch(training, log, step)
    while step < session.total_steps:
        if patience and training.progress.bad_epochs >= patience:
            logging.info(
                "no better epoch for %d epochs; stopped after epoch %d",
                patience,
                step // per_epoch,
            )
            return
        rows, batch = next(training.data)  # the examples, and the placed batch
        training.state, info = training.step(training.state, training.frozen, batch)
        step += 1
        ids = session.datasets["train"].ids[rows].tolist()
        training.guard.add(step, ids, info["finite"])
        training.checkpoints.poll()
        throughput.add(len(rows), int(training.lengths[rows].sum()))
        log.advance()
        _write_row(training, log, throughput, step, info)
        ended = step % per_epoch == 0
        asked = processes.agreed(stop.signal, _waits(training, step))
        if ended or asked or (every and step % every == 0):
            log.flush()  # before the save, so that a resumed run has all rows up to it
            training.save()
        _obey(stop, asked)  # before the evaluation, which the resumed run will do
        if ended:
            _end_epoch(training, log, step)
            throughput.reset()
            _obey(stop, processes.agreed(stop.signal, waits=True))


def _obey(stop: StopRequest, asked: int | None) -> None:
    if asked:
        stop.signal = asked  # on every process, whichever one got the signal
        raise Asked


def _waits(training: Training, step: int) -> bool:
    """Whether the loop waits for the devices after a step, to log or end an epoch."""
    session = training.session
    logged = step % session.settings.log.every_steps == 0
    return logged or step % session.steps_per_epoch == 0


def _write_row(
    training: Training,
    log: MetricLog,
    throughput: Throughput,
    step: int,
    info: dict[str, jax.Array],
) -> None:
    """Log a row every log.every_steps steps; reading the loss waits for the device."""
    session = training.session
    if step % session.settings.log.every_steps and step != session.total_steps:
        return
    if not training.guard.settle():
        return  # a skipped step has no loss
    loss = float(info["loss"])
    rates = throughput.read()
    log.show(loss=f"{loss:.4f}", examples_s=f"{rates['examples_per_s']:.0f}")
    log.write(
        {
            "step": step,
            "epoch": (step - 1) // session.steps_per_epoch + 1,
            "split": "train",
            "loss": loss,
            "grad_norm": float(info["grad_norm"]),
            **{n: float(x) for n, x in training.schedules(step - 1).items()},
            **_temperature(training, step),
            **rates,
        }
    )


def _temperature(training: Training, step: int) -> dict[str, float]:
    """Return the temperature of the loss for the log, if it is annealed or learned."""
    if training.temperature is not None:
        return {"loss_temperature": float(training.temperature(step - 1))}
    if "loss" in training.state.params:
        settings, params = training.session.settings, training.state.params
        t_K = ensembles.temperatures(settings, params)
        return {"loss_temperature": float(t_K.mean())}
    return {}


def _end_epoch(training: Training, log: MetricLog, step: int) -> None:
    """Evaluate calibration and validation; record the loss that models are chosen by.

    The state is being saved in the meantime. A run that is stopped here evaluates after
    it is resumed.
    """
    session = training.session
    epoch, select_on = step // session.steps_per_epoch, session.settings.select_on
    alpha, params = session.alpha_after(step), training.state.params
    judged = {}
    validations = [name for name in session.datasets if name.startswith("validation")]
    for split in ("calibration", *validations):
        judged[split] = training.judge(split, params, alpha)
        log.write({"step": step, "epoch": epoch, "split": split, **judged[split]})
    split = _split_of(select_on)
    if not judged.get(split):
        raise UserError(
            f"the split {split} has no labels to choose a model by; expected "
            "config.select_on=calibration"
        )
    found = rank(session, step, judged[split])
    log.flush()  # before `select`, because a selected epoch is not evaluated again
    training.checkpoints.select(step, found)
    training.progress = training.progress.after(found.loss)
    logging.info("epoch %d: %s", epoch, summary(judged))


def _split_of(select_on: str) -> str:
    return "validation" if select_on.startswith("validation") else "calibration"
