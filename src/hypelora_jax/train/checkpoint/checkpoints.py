"""Checkpoints of a run, without the frozen backbone: the last ones and the best one.

A checkpoint contains the train state, the frozen leaves that are not the backbone
(fixed A, factors to blend with), the data iterator, and a few numbers. It is written in
the background. manifest.json is written last, before orbax gives the folder its name,
so that a folder with a step's name and a manifest is complete. After the epoch was
evaluated, selection.json is added. The best checkpoint has the smallest score there;
among equals it is the latest.
"""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run
from hypelora_jax.train.checkpoint import selection
from hypelora_jax.train.checkpoint.selection import Selection
from hypelora_jax.train.state import TrainState
from hypelora_jax.types import Params

if TYPE_CHECKING:  # Orbax takes long to import, and a new run first needs it to save
    from orbax.checkpoint import v1 as ocp

# If several devices have a whole copy of a leaf, each writes a part of at least so many
# bytes. By default Orbax cuts even a bias, and JAX compiles a program for each cut,
# which costs seconds per run for nothing.
SMALLEST_PART = 2**16


class Checkpoint(NamedTuple):
    """A checkpoint that was read: the state, and what was saved with it."""

    step: int
    state: TrainState
    frozen: Params
    progress: dict[str, float]


class _Keep(NamedTuple):
    """Preservation policy for Orbax: keep the last n checkpoints and the best one."""

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

    Reading uses only the files. Orbax's manager also deletes unfinished saves, so it is
    not started before the first save: a reader must not disturb a run that trains.

    Args:
      keep: how many of the last checkpoints are kept in addition to the best one.
    """

    def __init__(self, run: Run, keep: int = 2):
        self.directory = run.checkpoints
        self._scores = selection.scores(self.directory)
        self._policy = _Keep(keep, self._scores)  # shares the dict
        self._saving: int | None = None

    @functools.cached_property
    def _ocp(self) -> "ocp.training.Checkpointer":
        from orbax.checkpoint import v1 as ocp

        # Orbax makes a deep copy of the context, so the callback must be a function: a
        # bound method would be copied together with this object.
        context = ocp.Context()
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
        """Return the step of the newest complete checkpoint, or None without any."""
        return max(selection.complete(self.directory), default=None)

    def latest_settled(self) -> int | None:
        """Return `latest` after the current save is complete.

        Raises:
          UserError: that save failed.
        """
        self.wait()
        return self.latest()

    def selection(self, step: int) -> Selection | None:
        """Return the scores of a step's epoch, or None before it is evaluated."""
        return selection.selection(self.directory, step)

    def select(self, step: int, chosen: Selection) -> None:
        """Record the scores of a step's epoch, once its checkpoint is complete.

        Raises:
          UserError: the save of the checkpoint failed.
        """
        self.wait()
        self._scores[step] = chosen.score
        if jax.process_index() == 0:
            selection.write_selection(self.directory, step, chosen)

    def newest(self) -> int | None:
        """Return the step of the newest undamaged checkpoint, or None without any.

        The log names damaged ones. They and unfinished ones are then deleted, because a
        resumed run will save those steps again.

        Raises:
          UserError: there are complete checkpoints, but all are damaged.
        """
        step, stale = selection.newest_sound(self.directory)
        for gone in stale:
            self._scores.pop(gone, None)
        return step

    def best(self) -> int | None:
        """Return the undamaged step with the smallest score, else the newest one.

        Raises:
          UserError: there are complete checkpoints, but all are damaged.
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
        """Begin to save in the background.

        The arrays are copied off the devices before this returns, so that the next step
        may overwrite the donated state.

        Args:
          progress: numbers that the loop restores, such as the best loss so far.
          frozen: frozen leaves that are not the backbone.
          iterator: iterator of the data, whose position is saved; None without data.

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
        """Wait until the current save is complete.

        Raises:
          UserError: the save failed.
        """
        if self._saving is None:
            return
        try:
            self._ocp.wait()
        except Exception as e:
            raise self._save_failed(e) from e
        self._saving = None

    def poll(self) -> None:
        """Call `wait` if the save ended, to notice a full disk at the next step."""
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

        `progress` names the numbers to restore; `iterator`, if given, moves to its
        saved position. Arrays get the shardings of those in `state` and `frozen`.
        """
        from orbax.checkpoint import v1 as ocp

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
        """Write the manifest; Orbax calls this on process 0 after all have written."""
        assert self._saving is not None  # it is set before orbax begins to write
        selection.seal(self.directory, self._saving)

    def _save_failed(self, error: Exception) -> UserError:
        step, self._saving = self._saving, None
        return UserError(
            f"cannot save step {step} in {self.directory}: {_one_line(error)}; the "
            f"last complete checkpoint is step {self.latest()}. Free space or mend "
            "the folder, then run the same command again to go on"
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
