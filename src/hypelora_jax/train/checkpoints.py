"""Checkpoints of a run: all but the frozen backbone; the last ones and the best.

A checkpoint holds the train state, the frozen leaves that are not the backbone (fixed
A, factors to blend with), the data iterator, and a few numbers. The best is the one
whose selection loss is smallest, the latest among equals.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from hypelora_jax.train.state import TrainState
from hypelora_jax.types import Params, UserError


class Restored(NamedTuple):
    """What a checkpoint gives back."""

    step: int
    state: TrainState
    frozen: Params
    progress: dict[str, float]


def _score(metrics: Any) -> float:
    loss = metrics["selection"]
    return -loss if math.isfinite(loss) else -math.inf


def _policy(keep: int):
    policies = ocp.training.preservation_policies
    return policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep),
            policies.BestN(
                get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )


class Checkpoints:
    """The checkpoints of one run folder; a context manager."""

    def __init__(self, workdir: epath.Path, keep: int = 2):
        self.directory = epath.Path(workdir) / "checkpoints"
        self._ocp = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=_policy(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *exc) -> None:
        try:
            self._ocp.close()
        except Exception:  # a save that failed says so again; its own line is enough
            if kind is None:
                raise

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._ocp.latest.step if self._ocp.latest else None

    def best(self) -> int | None:
        """Step of the checkpoint with the smallest selection loss, else the newest."""
        scored = [c for c in self._ocp.checkpoints if c.metrics]
        if not scored:
            return self.latest()
        return max(scored, key=lambda c: (_score(c.metrics), c.step)).step

    def save(
        self,
        state: TrainState,
        frozen: Params,
        iterator: Any,
        progress: dict[str, float],
        selection: float | None = None,
    ) -> None:
        """Save; returns when the checkpoint is complete.

        Args:
          progress: numbers the loop wants back, such as the best loss so far.
          frozen: frozen leaves that are not the backbone.
          iterator: where the data stands; None for a run that has none.
          selection: the loss models are chosen by, at the end of an epoch.

        Raises:
          UserError: the disk is full or the folder cannot be written.
        """
        step = int(state.step)
        items = {
            "state": _saveable(state),
            "progress": {n: np.asarray(x, np.float64) for n, x in progress.items()},
        }
        if jax.tree.leaves(frozen):
            items["frozen"] = frozen
        if iterator is not None:
            items["data"] = iterator
        metrics = None if selection is None else {"selection": float(selection)}
        try:
            self._ocp.save_checkpointables(step, items, force=True, metrics=metrics)
        except Exception as e:  # orbax and tensorstore raise many kinds for a full disk
            raise UserError(
                f"cannot save step {step} in {self.directory}: {_one_line(e)}; the "
                f"last complete checkpoint is step {self.latest()}: free space or "
                "mend the folder, then run the same command again to go on"
            ) from e

    def restore(
        self,
        step: int,
        state: TrainState,
        frozen: Params,
        progress: Iterable[str] = (),
        iterator: Any = None,
        sharding: jax.sharding.Sharding | None = None,
    ) -> Restored:
        """Read a checkpoint into the shapes of `state` and `frozen`.

        `progress` names the numbers wanted back; `iterator`, if given, is moved to
        where it was. Arrays come back on `sharding`.
        """
        wanted = {
            "state": _abstract(_saveable(state), sharding),
        }
        if names := tuple(progress):
            wanted["progress"] = {name: np.zeros((), np.float64) for name in names}
        if jax.tree.leaves(frozen):
            wanted["frozen"] = _abstract(frozen, sharding)
        if iterator is not None:
            wanted["data"] = iterator
        try:
            got = self._ocp.load_checkpointables(step, wanted)
        except Exception as e:  # orbax and tensorstore raise many kinds for damage
            raise UserError(
                f"cannot read checkpoint {self.directory / str(step)}: {_one_line(e)}; "
                "delete that folder to go on from the checkpoint before it"
            ) from e
        return Restored(
            step,
            _state(got["state"]),
            got.get("frozen", {}),
            _numbers(got.get("progress", {})),
        )


def _saveable(state: TrainState) -> dict:
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "key": state.key,
    }


def _state(tree: dict) -> TrainState:
    return TrainState(tree["step"], tree["params"], tree["opt_state"], tree["key"])


def _numbers(tree: dict) -> dict[str, float]:
    return {name: float(x) for name, x in tree.items()}


def _abstract(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding or x.sharding
        ),
        tree,
    )


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "space" in text.lower() or "errno 28" in text.lower():
        return "no space left on the disk"
    return " ".join(text.split())[:200]
