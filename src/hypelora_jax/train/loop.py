"""The training loop: steps, evaluation after each epoch, checkpoints, resume."""

from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from hypelora_jax.data.pipeline import train_iterator
from hypelora_jax.sharding.mesh import batch_size_per_device, put_batch, replicated
from hypelora_jax.train import members, setup, validate
from hypelora_jax.train.checkpoints import Checkpoints
from hypelora_jax.train.guard import Guard, all_finite, last_good
from hypelora_jax.train.journal import Journal, Meter, summary
from hypelora_jax.train.optim import learning_rate, loss_temperature
from hypelora_jax.train.setup import Plan, Workbench
from hypelora_jax.train.step import build_step
from hypelora_jax.train.stop import Asked, StopRequest
from hypelora_jax.train.stored import Progress, Selection
from hypelora_jax.types import Params, UserError


class Trained(NamedTuple):
    """The chosen model of a finished run."""

    trainable: Params
    frozen: Params
    alpha: jax.Array
    step: int  # of the checkpoint chosen
    epochs: int  # epochs trained


class _Run:
    """The moving parts of one run, so that the loop itself is short."""

    def __init__(
        self, bench: Workbench, plan: Plan, saved: Checkpoints, stop: StopRequest
    ):
        settings = bench.settings
        self.bench, self.plan, self.saved = bench, plan, saved
        self.optim = settings.optim
        self.state, tx, self.alpha = setup.start(bench, plan.total_steps)
        self.rate = learning_rate(settings.optim, plan.total_steps)
        self.temperature = loss_temperature(settings.loss, plan.total_steps)
        batch_size_per_device(
            self.optim.batch_size // self.optim.accumulate, bench.mesh
        )
        self.step = build_step(
            bench.model,
            tx,
            self.alpha,
            bench.mesh,
            accumulate=self.optim.accumulate,
            temperature=self.temperature,
            skip_nonfinite=self.optim.skip_nonfinite > 0,
            conditions=members.conditions(settings),
            seeds=members.seeds(settings),
        )
        forward = validate.forward(bench.model, bench.mesh)
        self.forward = forward._replace(classify=stop.between(forward.classify))
        self.frozen = bench.frozen
        self.data = train_iterator(
            plan.datasets["train"],
            plan.edges,
            self.optim.batch_size,
            setup.keys(settings).data,
            self.optim.num_epochs,
            soft=settings.loss.labels == "soft",
        )
        self.progress = Progress()
        self.judged = True  # is there no epoch that ended and was not evaluated?
        self.guard = Guard(self.optim.skip_nonfinite, 0, saved.latest_settled)

    def resume(self) -> int:
        """Go to the newest undamaged checkpoint; its step, 0 where there is none."""
        step = self.saved.newest()
        if step is None:
            return 0
        own = setup.own_frozen(self.frozen)
        whole = replicated(self.bench.mesh)
        got = self.saved.restore(
            step, self.state, own, Progress._fields, self.data, whole
        )
        self.state = got.state
        self.frozen = setup.with_own(self.frozen, got.frozen)
        best, bad, skipped = (got.progress[name] for name in Progress._fields)
        self.progress = Progress(best, int(bad), int(skipped))
        self.guard = Guard(
            self.optim.skip_nonfinite, self.progress.skipped, self.saved.latest_settled
        )
        if step % self.plan.steps_per_epoch == 0:
            chosen = self.saved.selection(step)
            self.judged = chosen is not None
            if chosen is not None:
                self.progress = self.progress.after(chosen.loss)
        return step

    def save(self) -> None:
        """Begin to save the state, if every number in it is finite."""
        self.guard.settle()
        if not all_finite(self.state.params):
            raise UserError(
                f"the parameters are not finite after step {int(self.state.step)}; "
                f"{last_good(self.saved.latest_settled())}: lower config.optim.lr, or "
                "raise optim.warmup"
            )
        self.progress = self.progress._replace(skipped=self.guard.skipped)
        own, progress = setup.own_frozen(self.frozen), self.progress._asdict()
        self.saved.save(self.state, own, self.data, progress)

    def alpha_after(self, step: int) -> jax.Array:
        """Blending weight of the last finished step: what evaluation uses."""
        return self.alpha(max(step - 1, 0))

    def judge(self, split: str, trainable: Params, alpha: jax.Array) -> dict[str, Any]:
        data, settings = self.plan.datasets[split], self.bench.settings
        own = members.split_logits(
            settings,
            self.forward,
            trainable,
            self.frozen,
            alpha,
            data,
            self.plan.edges,
        )
        if not np.isfinite(own).all():
            raise UserError(
                f"the logits of {split} are not finite at step {int(self.state.step)}; "
                "the run diverged: lower config.optim.lr, or raise optim.warmup"
            )
        logits, temperature = members.pool(settings, trainable, own)
        return validate.judge(self.bench.task, logits, data.label, temperature)


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
        run = _Run(bench, plan, saved, stop)
        step = run.resume()
        if step:
            logging.info("going on from step %d of %d", step, plan.total_steps)
        total = plan.total_steps
        with Journal(workdir, step, total, progress, run.judged) as journal:
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
            state, _, _ = setup.start(bench, plan.total_steps)
            own = setup.own_frozen(bench.frozen)
            saved.save(state, own, None, Progress()._asdict())
            return
        with StopRequest(at_once=True) as stop:
            run = _Run(bench, plan, saved, stop)
            run.save()
            last = bench.settings.select_on == "last"
            validation = bench.settings.select_on == "validation"
            split = "validation" if validation else "calibration"
            judged = run.judge(split, run.state.params, run.alpha_after(0))
        if judged:
            loss = validate.selection_loss(judged)
            saved.select(0, Selection(0.0 if last else loss, loss))


def _steps(run: _Run, journal: Journal, stop: StopRequest, step: int) -> None:
    """Steps until the last one, early stopping, or a request to stop."""
    meter, patience = Meter(), run.optim.patience
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
        run.guard.add(step, _ids(run, batch), info["finite"])
        run.saved.poll()
        meter.add(int(batch["weight"].sum()), int(batch["mask"].sum()))
        journal.advance()
        _log(run, journal, meter, step, info)
        ended, asked = step % per_epoch == 0, stop.signal  # read once: it may come now
        if ended or asked or (every and step % every == 0):
            run.save()
        if ended:
            _end_epoch(run, journal, step)
            meter.reset()
        if asked or (ended and stop.now):
            raise Asked


def _ids(run: _Run, batch: dict[str, np.ndarray]) -> list:
    """Ids of the examples of a batch."""
    index = batch["index"]
    return run.plan.datasets["train"].ids[index[index >= 0]].tolist()


def _log(run: _Run, journal: Journal, meter: Meter, step: int, info: dict) -> None:
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


def _temperature(run: _Run, step: int) -> dict[str, float]:
    """The loss's temperature for the log, if it changes: of the step, or learned."""
    if run.temperature is not None:
        return {"loss_temperature": float(run.temperature(step - 1))}
    if "loss" in run.state.params:
        t_K = members.temperatures(run.bench.settings, run.state.params)
        return {"loss_temperature": float(t_K.mean())}
    return {}


def _end_epoch(run: _Run, journal: Journal, step: int) -> None:
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
    chosen = "validation" if select_on == "validation" else "calibration"
    if not judged.get(chosen):
        raise UserError(
            f"the split {chosen} has no labels to choose a model by; wanted "
            "config.select_on=calibration"
        )
    loss = validate.selection_loss(judged[chosen])
    run.saved.select(
        step, Selection(-float(step) if select_on == "last" else loss, loss)
    )
    run.progress = run.progress.after(loss)
    logging.info("epoch %d: %s", epoch, summary(judged))


def _validations(plan: Plan) -> list[str]:
    return [name for name in plan.datasets if name.startswith("validation")]


def _chosen(run: _Run) -> Trained:
    """The best checkpoint of the run, read back."""
    step = run.saved.best()
    own = setup.own_frozen(run.frozen)
    whole = replicated(run.bench.mesh)
    got = run.saved.restore(step, run.state, own, sharding=whole)
    frozen = setup.with_own(run.frozen, got.frozen)
    epochs = int(run.state.step) // run.plan.steps_per_epoch
    return Trained(got.state.params, frozen, run.alpha_after(step), step, epochs)
