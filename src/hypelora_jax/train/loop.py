"""The training loop: steps, evaluation after each epoch, checkpoints, resume."""

from typing import NamedTuple

import jax
from absl import logging
from etils import epath

from hypelora_jax.errors import UserError
from hypelora_jax.run.metric_log import MetricLog, SilentLog, summary
from hypelora_jax.run.paths import Run as RunPaths
from hypelora_jax.run.throughput import Throughput
from hypelora_jax.sharding import processes
from hypelora_jax.sharding.mesh import put_batch
from hypelora_jax.train import ensembles, scoring, session
from hypelora_jax.train.checkpoint.checkpoints import Checkpoints
from hypelora_jax.train.checkpoint.selection import Progress
from hypelora_jax.train.interruption import Asked, StopRequest
from hypelora_jax.train.running import Run
from hypelora_jax.train.session import Plan, Workbench
from hypelora_jax.types import Params


class Trained(NamedTuple):
    """The chosen model of a finished run."""

    trainable: Params
    frozen: Params
    alpha: jax.Array
    step: int  # of the checkpoint chosen
    epochs: int  # epochs trained


def train(
    bench: Workbench, plan: Plan, workdir: epath.Path, progress: bool = True
) -> Trained:
    """Train to the end, from the newest checkpoint if there is one.

    Raises:
      KeyboardInterrupt, Preempted: asked to stop; the state is saved.
      UserError: a loss that is not finite, or a disk that cannot take a checkpoint.
    """
    keep = bench.settings.ckpt.keep
    with Checkpoints(workdir, keep) as saved, StopRequest() as stop:
        run = Run(bench, plan, saved, stop)
        step = run.resume()
        if step:
            logging.info("going on from step %d of %d", step, plan.total_steps)
        write = processes.together(lambda: _journal(run, workdir, step, progress))
        with write as journal:
            try:
                _steps(run, journal, stop, step)
            except Asked:
                saved.wait()  # may say that the disk is full
                raise stop.error(int(run.state.step)) from None
        return _chosen(run)


def begin(bench: Workbench, plan: Plan, workdir: epath.Path) -> None:
    """Save what a bench holds as step 0 of a run, from which training goes on.

    It competes with the epochs to come by its own selection loss. A plan without data
    saves the parameters alone: they can be used, not trained.
    """
    with Checkpoints(workdir, bench.settings.ckpt.keep) as saved:
        if "train" not in plan.datasets:
            abstract, tx, _ = session.start(bench, plan.total_steps)
            state = session.first_state(bench, abstract, tx)
            own = session.own_frozen(bench.frozen)
            saved.save(state, own, None, Progress()._asdict())
            return
        with StopRequest(at_once=True) as stop:
            run = Run(bench, plan, saved, stop)
            run.fresh()
            run.save()
            select_on = bench.settings.select_on
            params, alpha = run.state.params, run.alpha_after(0)
            judged = run.judge(_split_of(select_on), params, alpha)
        if judged:
            saved.select(
                0,
                scoring.selection(
                    select_on, bench.model.objective.unit, bench.task.metrics, 0, judged
                ),
            )


def _journal(
    run: Run, workdir: epath.Path, step: int, show: bool
) -> MetricLog | SilentLog:
    if not processes.is_main():
        return SilentLog()
    return MetricLog(RunPaths(workdir), step, run.plan.total_steps, show, run.judged)


def _steps(
    run: Run, journal: MetricLog | SilentLog, stop: StopRequest, step: int
) -> None:
    """Steps until the last one, early stopping, or a request to stop."""
    meter, patience = Throughput(), run.optim.patience
    every = run.bench.settings.ckpt.every_steps
    per_epoch = run.plan.steps_per_epoch
    if not run.judged:  # stopped in the evaluation that this epoch ends with
        _end_epoch(run, journal, step)
    while step < run.plan.total_steps:
        if patience and run.progress.bad_epochs >= patience:
            logging.info(
                "no better epoch for %d: stopped after %d", patience, step // per_epoch
            )
            return
        batch = next(run.data)
        run.state, info = run.step(
            run.state, run.frozen, put_batch(batch, run.bench.mesh)
        )
        step += 1
        rows = batch["index"][batch["index"] >= 0]  # of all processes
        ids = run.plan.datasets["train"].ids[rows].tolist()
        run.guard.add(step, ids, info["finite"])
        run.saved.poll()
        meter.add(len(rows), int(run.lengths[rows].sum()))
        journal.advance()
        _log(run, journal, meter, step, info)
        ended = step % per_epoch == 0
        asked = processes.agreed(stop.signal, _waits(run, step))
        if ended or asked or (every and step % every == 0):
            journal.flush()  # first: rows after the last save are dropped on resuming
            run.save()
        _obey(stop, asked)  # before the evaluation, which the resumed run will do
        if ended:
            _end_epoch(run, journal, step)
            meter.reset()
            _obey(stop, processes.agreed(stop.signal, waits=True))


def _obey(stop: StopRequest, asked: int | None) -> None:
    if asked:
        stop.signal = asked  # on this process too, whichever was sent it
        raise Asked


def _waits(run: Run, step: int) -> bool:
    """Whether the loop waits for the devices after a step: a row, or an epoch's end."""
    logged = step % run.bench.settings.log.every_steps == 0
    return logged or step % run.plan.steps_per_epoch == 0


def _log(
    run: Run, journal: MetricLog | SilentLog, meter: Throughput, step: int, info: dict
) -> None:
    """A row every log.every_steps steps; reading the loss waits for the device."""
    if step % run.bench.settings.log.every_steps and step != run.plan.total_steps:
        return
    if not run.guard.settle():
        return  # skipped: it has no loss
    loss = float(info["loss"])
    rates = meter.read()
    journal.show(loss=f"{loss:.4f}", examples_s=f"{rates['examples_per_s']:.0f}")
    journal.write(
        {
            "step": step,
            "epoch": (step - 1) // run.plan.steps_per_epoch + 1,
            "split": "train",
            "loss": loss,
            "grad_norm": float(info["grad_norm"]),
            "lr": float(run.rate(step - 1)),
            "alpha": float(run.alpha(step - 1)),
            **_temperature(run, step),
            **rates,
        }
    )


def _temperature(run: Run, step: int) -> dict[str, float]:
    """The loss's temperature for the log, if it changes: of the step, or learned."""
    if run.temperature is not None:
        return {"loss_temperature": float(run.temperature(step - 1))}
    if "loss" in run.state.params:
        t_K = ensembles.temperatures(run.bench.settings, run.state.params)
        return {"loss_temperature": float(t_K.mean())}
    return {}


def _end_epoch(run: Run, journal: MetricLog | SilentLog, step: int) -> None:
    """Judge the selection split and validation; record the loss models are chosen by.

    The state is being saved meanwhile. A run stopped here judges when it goes on.
    """
    epoch = step // run.plan.steps_per_epoch
    select_on = run.bench.settings.select_on
    alpha, params = run.alpha_after(step), run.state.params
    judged = {}
    for split in ("calibration", *_validations(run.plan)):
        judged[split] = run.judge(split, params, alpha)
        journal.write({"step": step, "epoch": epoch, "split": split, **judged[split]})
    chosen = _split_of(select_on)
    if not judged.get(chosen):
        raise UserError(
            f"the split {chosen} has no labels to choose a model by; wanted "
            "config.select_on=calibration"
        )
    unit, names = run.bench.model.objective.unit, run.bench.task.metrics
    rank = scoring.selection(select_on, unit, names, step, judged[chosen])
    journal.flush()  # first: what was selected is not evaluated again
    run.saved.select(step, rank)
    run.progress = run.progress.after(rank.loss)
    logging.info("epoch %d: %s", epoch, summary(judged))


def _split_of(select_on: str) -> str:
    return "validation" if select_on.startswith("validation") else "calibration"


def _validations(plan: Plan) -> list[str]:
    return [name for name in plan.datasets if name.startswith("validation")]


def _chosen(run: Run) -> Trained:
    """The best checkpoint of the run, read back."""
    step = run.saved.best()
    own = session.own_frozen(run.frozen)
    got = run.saved.restore(step, run.abstract, own)
    frozen = session.with_own(run.frozen, got.frozen)
    epochs = int(run.state.step) // run.plan.steps_per_epoch
    return Trained(got.state.params, frozen, run.alpha_after(step), step, epochs)
