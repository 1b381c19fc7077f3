"""The training loop: steps, evaluation after each epoch, checkpoints, resume."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from hypelora_jax.data.pipeline import train_iterator
from hypelora_jax.sharding.mesh import batch_size_per_device, put_batch, replicated
from hypelora_jax.train import setup, validate
from hypelora_jax.train.checkpoints import Checkpoints
from hypelora_jax.train.journal import Journal, Meter
from hypelora_jax.train.optim import learning_rate, loss_temperature
from hypelora_jax.train.setup import Plan, Workbench
from hypelora_jax.train.state import TrainState
from hypelora_jax.train.step import build_step
from hypelora_jax.train.stop import StopRequest
from hypelora_jax.types import Params, UserError


class Trained(NamedTuple):
    """The chosen model of a finished run."""

    trainable: Params
    frozen: Params
    alpha: jax.Array
    step: int  # of the checkpoint chosen
    epochs: int  # epochs trained


class _Progress(NamedTuple):
    """Early stopping, as it is saved with each checkpoint."""

    best: float = math.inf
    bad_epochs: int = 0


class _Run:
    """The moving parts of one run, so that the loop itself is short."""

    def __init__(self, bench: Workbench, plan: Plan, saved: Checkpoints):
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
        )
        self.forward = validate.forward(bench.model, bench.mesh)
        self.frozen = bench.frozen
        self.data = train_iterator(
            plan.datasets["train"],
            plan.edges,
            self.optim.batch_size,
            setup.keys(settings).data,
            self.optim.num_epochs,
            soft=settings.loss.labels == "soft",
        )
        self.progress = _Progress()

    def resume(self) -> int:
        """Go to the newest checkpoint; its step, 0 where there is none."""
        step = self.saved.latest()
        if step is None:
            return 0
        own = setup.own_frozen(self.frozen)
        whole = replicated(self.bench.mesh)
        got = self.saved.restore(
            step, self.state, own, _Progress._fields, self.data, whole
        )
        self.state = got.state
        self.frozen = setup.with_own(self.frozen, got.frozen)
        saved = got.progress
        self.progress = _Progress(saved["best"], int(saved["bad_epochs"]))
        return step

    def save(self, selection: float | None = None) -> None:
        own, progress = setup.own_frozen(self.frozen), self.progress._asdict()
        self.saved.save(self.state, own, self.data, progress, selection)

    def alpha_after(self, step: int) -> jax.Array:
        """Blending weight of the last finished step: what evaluation uses."""
        return self.alpha(max(step - 1, 0))

    def judge(self, split: str, trainable: Params, alpha: jax.Array) -> dict[str, Any]:
        data = self.plan.datasets[split]
        logits = validate.split_logits(
            self.forward,
            trainable,
            self.frozen,
            alpha,
            data,
            self.plan.edges,
            self.optim.batch_size,
        )
        if not np.isfinite(logits).all():
            raise UserError(
                f"the logits of {split} are not finite at step {int(self.state.step)}; "
                "the run diverged: lower config.optim.lr, or raise optim.warmup"
            )
        temperature = validate.train_temperature(trainable)
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
        run = _Run(bench, plan, saved)
        step = run.resume()
        if step:
            logging.info("going on from step %d of %d", step, plan.total_steps)
        with Journal(workdir, step, plan.total_steps, progress) as journal:
            _steps(run, journal, stop, step)
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
            saved.save(state, own, None, _Progress()._asdict())
            return
        run = _Run(bench, plan, saved)
        select_on = bench.settings.select_on
        split = "validation" if select_on == "validation" else "calibration"
        judged = run.judge(split, run.state.params, run.alpha_after(0))
        loss = validate.selection_loss(judged) if judged else None
        if loss is not None:
            run.progress = _Progress(loss)
            loss = 0.0 if select_on == "last" else loss
        run.save(loss)


def _steps(run: _Run, journal: Journal, stop: StopRequest, step: int) -> None:
    """Steps until the last one, early stopping, or a request to stop."""
    meter, patience = Meter(), run.optim.patience
    every = run.bench.settings.ckpt.every_steps
    epoch = step // run.plan.steps_per_epoch
    while step < run.plan.total_steps:
        if patience and run.progress.bad_epochs >= patience:
            logging.info("no better epoch for %d: stopped after %d", patience, epoch)
            return
        batch = next(run.data)
        run.state, info = run.step(
            run.state, run.frozen, put_batch(batch, run.bench.mesh)
        )
        step += 1
        meter.add(int(batch["weight"].sum()), int(batch["mask"].sum()))
        journal.advance()
        _log(run, journal, meter, step, info)
        if step % run.plan.steps_per_epoch == 0:
            epoch += 1
            run.save(_end_epoch(run, journal, step, epoch))
            meter.reset()
        elif stop.signal or (every and step % every == 0):
            _finite(run, step, float(info["loss"]))
            run.save()
        if stop.signal:
            raise stop.error(step)


def _log(run: _Run, journal: Journal, meter: Meter, step: int, info: dict) -> None:
    """A row every log.every_steps steps; reading the loss waits for the device."""
    if step % run.bench.settings.log.every_steps and step != run.plan.total_steps:
        return
    loss = float(info["loss"])
    _finite(run, step, loss)
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
        return {"loss_temperature": validate.train_temperature(run.state.params)}
    return {}


def _finite(run: _Run, step: int, loss: float) -> None:
    """Refuse to log or save a diverged state."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}; the last checkpoint is step "
            f"{run.saved.latest()}: lower config.optim.lr, or raise optim.warmup"
        )


def _end_epoch(run: _Run, journal: Journal, step: int, epoch: int) -> float:
    """Judge the selection split and validation; the loss to choose a model by."""
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
    better = loss < run.progress.best
    run.progress = _Progress(
        min(loss, run.progress.best), 0 if better else run.progress.bad_epochs + 1
    )
    _say(epoch, judged)
    return -float(step) if select_on == "last" else loss


def _validations(plan: Plan) -> list[str]:
    return [name for name in plan.datasets if name.startswith("validation")]


def _say(epoch: int, judged: dict[str, dict]) -> None:
    shown = {s: m for s, m in judged.items() if m}
    text = "; ".join(
        f"{split} "
        + " ".join(
            f"{n} {m[n]:.4f}"
            for n in ("nll", "mse", "accuracy", "mcc", "f1", "pearson", "ece")
            if n in m
        )
        for split, m in shown.items()
    )
    logging.info("epoch %d: %s", epoch, text)


def _chosen(run: _Run) -> Trained:
    """The best checkpoint of the run, read back."""
    step = run.saved.best()
    own = setup.own_frozen(run.frozen)
    whole = replicated(run.bench.mesh)
    got = run.saved.restore(step, run.state, own, sharding=whole)
    frozen = setup.with_own(run.frozen, got.frozen)
    epochs = int(run.state.step) // run.plan.steps_per_epoch
    return Trained(got.state.params, frozen, run.alpha_after(step), step, epochs)


def restore_chosen(
    bench: Workbench, workdir: epath.Path, total_steps: int
) -> tuple[TrainState, Params, jax.Array, int]:
    """(state, frozen, alpha, step) of the chosen checkpoint of a run folder.

    Raises:
      UserError: the folder holds no complete checkpoint.
    """
    with Checkpoints(workdir, bench.settings.ckpt.keep) as saved:
        step = saved.best()
        if step is None:
            raise UserError(
                f"{workdir} holds no complete checkpoint; wanted a run trained for an "
                "epoch at least: run hypelora train with the same --workdir"
            )
        state, _, alpha = setup.start(bench, total_steps)
        own, whole = setup.own_frozen(bench.frozen), replicated(bench.mesh)
        got = saved.restore(step, state, own, sharding=whole)
        frozen = setup.with_own(bench.frozen, got.frozen)
        return got.state, frozen, alpha(max(step - 1, 0)), step
