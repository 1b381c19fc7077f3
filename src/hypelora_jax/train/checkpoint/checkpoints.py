"""Checkpoints of a run: all but the frozen backbone; the last ones and the best.

A checkpoint holds the train state, the frozen leaves that are not the backbone (fixed
A, factors to blend with), the data iterator, and a few numbers. It is written in the
background. manifest.json goes in last, before orbax gives the folder its name, so that
a folder with a step's name and a manifest is complete. After an epoch was judged,
selection.json joins it: the best checkpoint is the one whose score there is smallest,
the latest among equals.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run
from hypelora_jax.train.checkpoint import selection
from hypelora_jax.train.checkpoint.selection import Selection
from hypelora_jax.train.state import TrainState
from hypelora_jax.types import Params

# Bytes of a leaf that devices which all hold it write in parts. Orbax cuts even a bias
# by default, and JAX compiles a program for each cut: seconds a run, for nothing.
SMALLEST_PART = 2**16


class Checkpoint(NamedTuple):
    """A checkpoint that was read: the state, and what was saved with it."""

    step: int
    state: TrainState
    frozen: Params
    progress: dict[str, float]


class _Keep(NamedTuple):
    """Orbax's preservation policy: the last n and the best."""

    n: int
    scores: dict[int, float]

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        steps = [c.step for c in checkpoints]
        ranked = [s for s in reversed(steps) if self.scores.get(s, -np.inf) > -np.inf]
        best = sorted(ranked, key=lambda s: self.scores[s])[:1]
        kept = {*steps[-self.n :], *best}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one run folder; a context manager.

    Reading goes by the files alone. Orbax's manager, which also clears unfinished saves
    away, starts with the first save, so that a reader leaves a running run in peace.

    Args:
      keep: how many of the last are kept beside the best.
    """

    def __init__(self, run: Run, keep: int = 2):
        self.directory = run.checkpoints
        self._scores = selection.scores(self.directory)
        self._policy = _Keep(keep, self._scores)  # sees it grow
        self._saving: int | None = None

    @functools.cached_property
    def _ocp(self) -> ocp.training.Checkpointer:
        context = ocp.Context()  # copied in depth: hence a function, no bound method
        context.asynchronous.post_finalization_callback = lambda: self._seal()
        context.array.saving.min_slice_bytes_for_replica_parallel = SMALLEST_PART
        return ocp.training.Checkpointer(
            self.directory,
            context=context,
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *exc) -> None:
        if "_ocp" not in self.__dict__:
            return
        try:
            self._ocp.close()
        except Exception as e:  # a save that failed
            if kind is None:
                raise self._save_failed(e) from e

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(selection.complete(self.directory), default=None)

    def latest_settled(self) -> int | None:
        """`latest`, once the save under way is complete.

        Raises:
          UserError: that save failed.
        """
        self.wait()
        return self.latest()

    def selection(self, step: int) -> Selection | None:
        """How the epoch that ends with a step did; None before it is judged."""
        return selection.selection(self.directory, step)

    def select(self, step: int, chosen: Selection) -> None:
        """Record how the epoch did whose checkpoint is `step`, once that is complete.

        Raises:
          UserError: its save failed.
        """
        self.wait()
        self._scores[step] = chosen.score
        if jax.process_index() == 0:
            selection.write_selection(self.directory, step, chosen)

    def newest(self) -> int | None:
        """Step to go on from: the newest undamaged checkpoint; None without any.

        Damaged ones are named. They and unfinished ones are then deleted, since the run
        will save those steps again.

        Raises:
          UserError: there are complete checkpoints, and all are damaged.
        """
        step, stale = selection.newest_sound(self.directory)
        for gone in stale:
            self._scores.pop(gone, None)
        return step

    def best(self) -> int | None:
        """The undamaged checkpoint with the smallest score, else the newest one.

        Raises:
          UserError: there are complete checkpoints, and all are damaged.
        """
        newest_first = reversed(selection.complete(self.directory))
        ranked = sorted(newest_first, key=lambda s: self._scores.get(s, np.inf))
        return selection.first_sound(self.directory, ranked)

    def save(
        self,
        state: TrainState,
        frozen: Params,
        iterator: Any,
        progress: dict[str, float],
    ) -> None:
        """Begin to save; the arrays are copied off the devices before it returns.

        Args:
          progress: numbers the loop wants back, such as the best loss so far.
          frozen: frozen leaves that are not the backbone.
          iterator: where the data stands; None for a run that has none.

        Raises:
          UserError: the disk is full or the folder cannot be written, now or in the
            save before this one.
        """
        self.wait()
        items = {
            "state": vars(state),
            "progress": {n: np.asarray(x, np.float64) for n, x in progress.items()},
        }
        if jax.tree.leaves(frozen):
            items["frozen"] = frozen
        if iterator is not None:
            items["data"] = iterator
        self._saving = int(state.step)
        try:
            self._ocp.save_checkpointables_async(self._saving, items, force=True)
        except Exception as e:  # orbax and tensorstore raise many kinds for a full disk
            raise self._save_failed(e) from e

    def wait(self) -> None:
        """Returns once the save under way is complete.

        Raises:
          UserError: it failed.
        """
        if self._saving is None:
            return
        try:
            self._ocp.wait()
        except Exception as e:
            raise self._save_failed(e) from e
        self._saving = None

    def poll(self) -> None:
        """`wait` if the save has ended; so a full disk is noticed at the next step."""
        if self._saving is not None and not self._ocp.is_saving_in_progress():
            self.wait()

    def restore(
        self,
        step: int,
        state: TrainState,
        frozen: Params,
        progress: Iterable[str] = (),
        iterator: Any = None,
    ) -> Checkpoint:
        """Read a checkpoint into the shapes of `state` and `frozen`.

        `progress` names the numbers wanted back; `iterator`, if given, is moved to
        where it was. Arrays come back where those of `state` and `frozen` are.
        """
        wanted = {"state": _abstract(vars(state))}
        if names := tuple(progress):
            wanted["progress"] = {name: np.zeros((), np.float64) for name in names}
        if jax.tree.leaves(frozen):
            wanted["frozen"] = _abstract(frozen)
        if iterator is not None:
            wanted["data"] = iterator
        try:
            got = ocp.load_checkpointables(self.directory / str(step), wanted)
        except Exception as e:  # orbax and tensorstore raise many kinds for damage
            raise UserError(
                f"cannot read checkpoint {self.directory / str(step)}: {_one_line(e)}; "
                "delete that folder to go on from the checkpoint before it"
            ) from e
        numbers = {name: float(x) for name, x in got.get("progress", {}).items()}
        state = TrainState(**got["state"])
        return Checkpoint(step, state, got.get("frozen", {}), numbers)

    def _seal(self) -> None:
        """Orbax calls it on process 0 once all processes have written their part."""
        assert self._saving is not None  # it is set before orbax begins to write
        selection.seal(self.directory, self._saving)

    def _save_failed(self, error: Exception) -> UserError:
        step, self._saving = self._saving, None
        return UserError(
            f"cannot save step {step} in {self.directory}: {_one_line(error)}; the "
            f"last complete checkpoint is step {self.latest()}: free space or "
            "mend the folder, then run the same command again to go on"
        )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "space" in text.lower() or "errno 28" in text.lower():
        return "no space left on the disk"
    return " ".join(text.split())[:200]
