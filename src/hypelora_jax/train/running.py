"""The moving parts of one run: functions, state and data, and where they stand."""

from typing import Any

import jax
import numpy as np

from hypelora_jax.data.batches import train_iterator
from hypelora_jax.errors import UserError
from hypelora_jax.sharding.mesh import batch_size_per_device, own_rows
from hypelora_jax.train import ensembles, scoring, session
from hypelora_jax.train.checkpoint.checkpoints import Checkpoints
from hypelora_jax.train.checkpoint.selection import Progress
from hypelora_jax.train.divergence import Guard, all_finite, last_good
from hypelora_jax.train.interruption import StopRequest
from hypelora_jax.train.optimizer import learning_rate, loss_temperature
from hypelora_jax.train.session import Plan, Workbench
from hypelora_jax.train.state import TrainState
from hypelora_jax.train.step import build_step
from hypelora_jax.types import Params


class Run:
    """What the loop moves: `state`, `data`, `progress`, and what it calls."""

    def __init__(
        self, bench: Workbench, plan: Plan, saved: Checkpoints, stop: StopRequest
    ):
        settings = bench.settings
        self.bench, self.plan, self.saved = bench, plan, saved
        self.optim = settings.optim
        self.abstract, self.tx, self.alpha = session.start(bench, plan.total_steps)
        self.state: TrainState = self.abstract  # until `resume` or `fresh`
        self.rate = learning_rate(settings.optim, plan.total_steps)
        self.temperature = loss_temperature(settings.loss, plan.total_steps)
        batch_size_per_device(
            self.optim.batch_size // self.optim.accumulate, bench.mesh
        )
        self.step = build_step(
            bench.model,
            self.tx,
            self.alpha,
            bench.mesh,
            accumulate=self.optim.accumulate,
            temperature=self.temperature,
            skip_nonfinite=self.optim.skip_nonfinite > 0,
            conditions=ensembles.conditions(settings),
            seeds=ensembles.seeds(settings),
            shardings=jax.tree.map(lambda x: x.sharding, (self.abstract, bench.frozen)),
        )
        forward = scoring.forward(bench.model, bench.mesh)
        self.forward = forward._replace(classify=stop.between(forward.classify))
        self.frozen = bench.frozen
        self.data = train_iterator(
            plan.datasets["train"],
            plan.edges,
            self.optim.batch_size,
            session.keys(settings).data,
            self.optim.num_epochs,
            soft=settings.loss.labels == "soft",
            own=own_rows(self.optim.batch_size, bench.mesh),
        )
        self.lengths = plan.datasets["train"].lengths
        self.progress = Progress()
        self.judged = True  # is there no epoch that ended and was not evaluated?
        self.guard = Guard(self.optim.skip_nonfinite, 0, saved.latest_settled)

    def fresh(self) -> None:
        """Go to the state before the first step."""
        self.state = session.first_state(self.bench, self.abstract, self.tx)

    def resume(self) -> int:
        """Go to the newest undamaged checkpoint; its step, 0 where there is none.

        Arrays go where this run's mesh wants them, whatever mesh they were saved from.
        """
        step = self.saved.newest()
        if step is None:
            self.fresh()
            return 0
        own = session.own_frozen(self.frozen)
        got = self.saved.restore(step, self.abstract, own, Progress._fields, self.data)
        self.state = got.state
        self.frozen = session.with_own(self.frozen, got.frozen)
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
        own, progress = session.own_frozen(self.frozen), self.progress._asdict()
        self.saved.save(self.state, own, self.data, progress)

    def alpha_after(self, step: int) -> jax.Array:
        """Blending weight of the last finished step: what evaluation uses."""
        return self.alpha(max(step - 1, 0))

    def judge(self, split: str, trainable: Params, alpha: jax.Array) -> dict[str, Any]:
        """Metrics of a split, as training knows them: without a post-hoc calibrator."""
        data, settings = self.plan.datasets[split], self.bench.settings
        own = ensembles.split_logits(
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
        logits, temperature = ensembles.pool(settings, trainable, own)
        known = (data.label, temperature, data.soft)
        return scoring.judge(self.bench.model.objective, logits, *known)
