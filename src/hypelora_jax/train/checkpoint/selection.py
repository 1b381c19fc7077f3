"""Finds out which checkpoints in a folder are complete, undamaged, and the best.

A checkpoint is the folder of its step. It is complete once it has manifest.json, which
is written before orbax gives the folder its name. After its epoch was evaluated it also
has selection.json.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from hypelora_jax import files
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import COMMITTED, SELECTION
from hypelora_jax.train.checkpoint import manifest

LATER = frozenset({SELECTION, COMMITTED})  # written after the manifest, so not in it


class Selection(NamedTuple):
    """Scores of an epoch: `score` ranks checkpoints, `loss` decides on early stops."""

    score: float
    loss: float


class Progress(NamedTuple):
    """Early stopping before the current epoch, and skipped steps; saved each time."""

    best: float = math.inf
    bad_epochs: int = 0
    skipped: int = 0

    def after(self, loss: float) -> "Progress":
        """Return the progress after an epoch was evaluated."""
        bad = 0 if loss < self.best else self.bad_epochs + 1
        return self._replace(best=min(loss, self.best), bad_epochs=bad)


def steps(directory: epath.Path) -> list[int]:
    """Return the steps that have a folder, complete or not, ascending."""
    if not directory.exists():
        return []
    names = [path.name for path in directory.iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def complete(directory: epath.Path) -> list[int]:
    """Return the steps of all complete checkpoints, ascending."""
    return [s for s in steps(directory) if manifest.exists(directory / str(s))]


def seal(directory: epath.Path, step: int) -> None:
    """Write the manifest of a step after all its other files.

    The folder still has a temporary name, except on an object store.
    """
    for path in directory.iterdir():
        if path.name == str(step) or path.name.startswith(f"{step}."):
            manifest.write(path, LATER)


def selection(directory: epath.Path, step: int) -> Selection | None:
    """Return the scores of the epoch that ends with a step; None before evaluation.

    Raises:
      ValueError: the file is damaged.
    """
    path = directory / str(step) / SELECTION
    if not path.exists():
        return None
    value = manifest.unseal(path.read_bytes())
    return Selection(value["score"], value["loss"])


def write_selection(directory: epath.Path, step: int, chosen: Selection) -> None:
    """Add selection.json to a complete checkpoint."""
    path = directory / str(step) / SELECTION
    files.write_whole(path, manifest.seal(chosen._asdict()))


def scores(directory: epath.Path) -> dict[int, float]:
    """Return the scores of evaluated checkpoints; -inf if selection.json is damaged.

    A search for the best then tries the damaged one first, and its damage is reported.
    """
    out = {}
    for step in complete(directory):
        try:
            found = selection(directory, step)
        except ValueError:
            out[step] = -np.inf
        else:
            out |= {} if found is None else {step: found.score}
    return out


def fault(directory: epath.Path, step: int) -> str | None:
    """Return what is damaged in a checkpoint, or None if nothing is."""
    if found := manifest.fault(directory / str(step)):
        return found
    try:
        selection(directory, step)
    except ValueError as e:
        return f"{SELECTION} is damaged: {e}"
    return None


def first_sound(directory: epath.Path, candidates: Iterable[int]) -> int | None:
    """Return the first undamaged step; all processes get the same answer.

    The log names damaged ones before it. Only process 0 reads the files.

    Raises:
      UserError: there are candidates, but all are damaged.
    """
    found: int | None = None
    faults: list[str] = []
    if jax.process_index() == 0:
        found, faults = _search(directory, candidates)
    if jax.process_count() > 1:
        # a step, or -1 without candidates, or -2 if all are damaged
        own = np.asarray(-1 - bool(faults) if found is None else found)
        code = int(multihost_utils.broadcast_one_to_all(own))
        found = code if code >= 0 else None
        faults = faults or ["process 0 says where"] * (code == -2)
    if found is None and faults:
        raise UserError(
            f"every checkpoint in {directory} is damaged ({'; '.join(faults)}); "
            "restore the files, or delete that folder to start again"
        )
    for line in faults:
        logging.warning("%s; it is skipped, and step %s is used", line, found)
    return found


def _search(
    directory: epath.Path, candidates: Iterable[int]
) -> tuple[int | None, list[str]]:
    faults: list[str] = []
    for step in candidates:
        found = fault(directory, step)
        if found is None:
            return step, faults
        faults.append(f"checkpoint {directory / str(step)}: {found}")
    return None, faults


def newest_sound(directory: epath.Path) -> tuple[int | None, list[int]]:
    """Return (newest undamaged step or None, deleted steps).

    Unfinished checkpoints and newer damaged ones are deleted, because a resumed run
    will save those steps again. Older ones are deleted if orbax could not read their
    metadata.
    """
    every, done = steps(directory), complete(directory)
    found = first_sound(directory, reversed(done))
    stale = [
        step
        for step in every
        if step not in done
        or (found is not None and step > found)
        or manifest.fault(directory / str(step), only=manifest.STAMPED)
    ]
    if jax.process_index() == 0:
        for step in stale:
            (directory / str(step)).rmtree()
    if jax.process_count() > 1:
        # no process may save a step while process 0 still deletes its old folder
        multihost_utils.sync_global_devices("stale checkpoints deleted")
    return found, stale
