"""A row of a report: the results of one run, or of the seeds of one configuration."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.calibration import calibrators
from hypelora_jax.run import results
from hypelora_jax.run.paths import Run, unique_names
from hypelora_jax.run.results import Results


class Series(NamedTuple):
    """Results of the seeds of one configuration, under the name that a report shows."""

    name: str
    seeds: tuple[Results, ...]


class Examples(NamedTuple):
    """Labelled examples of a split, with the probabilities a run gives them."""

    before: np.ndarray  # (N, Y) float64, without the post-hoc calibrator
    after: np.ndarray | None  # (N, Y) float64, with it; None if it changes nothing
    labels: np.ndarray  # (N,) classes
    ids: np.ndarray  # (N,)
    soft: np.ndarray | None = None  # (N, Y) shares of raters

    @property
    def final(self) -> np.ndarray:
        """Probabilities (N, Y) that `predict` gives."""
        return self.before if self.after is None else self.after


def load(workdir: epath.PathLike) -> Series:
    """Load the run of a folder, or all runs of its folders seed_0, seed_1, ...

    Raises:
      UserError: the folder has no run, or one of its files is damaged.
    """
    run = Run.open(workdir)
    seeds = [] if run.config_file.exists() else run.seeds()
    return Series(run.name, tuple(results.read(one) for one in seeds or [run]))


def load_all(workdirs: Sequence[epath.PathLike]) -> list[Series]:
    """Load several folders; the names of equally named ones include their parents'.

    Raises:
      UserError: as `load`, or a folder is given twice.
    """
    names = unique_names(workdirs)
    loaded = [load(workdir) for workdir in workdirs]
    return [one._replace(name=name) for one, name in zip(loaded, names, strict=True)]


def examples(run: Results, split: str) -> Examples | None:
    """Labelled examples of a split of a classification run, or None without any."""
    if (found := run.predictions.get(split)) is None or found.logits.shape[1] < 2:
        return None
    if found.labels.ndim != 1:  # a soft label does not say which class is right
        return None
    keep = found.labels >= 0
    if not keep.any():
        return None
    ids = np.arange(len(keep)) if found.ids is None else found.ids
    logits = found.logits[keep].astype(np.float64)
    before = calibrators.softmax(logits, run.train_temperature)
    after = None
    if changes(run.calibrator, run.train_temperature):
        after = np.asarray(calibrators.apply(run.calibrator, logits), np.float64)
    soft = None if found.soft is None else found.soft[keep]
    return Examples(before, after, found.labels[keep].astype(int), ids[keep], soft)


def all_examples(series: Series, split: str) -> list[Examples] | None:
    """Labelled examples of every seed, or None if a seed has none."""
    found = [examples(run, split) for run in series.seeds]
    every = [one for one in found if one is not None]
    return every if every and len(every) == len(found) else None


def changes(calibrator: Any, train_temperature: float) -> bool:
    """Whether a calibrator gives other probabilities than the training temperature."""
    if calibrator is None or isinstance(calibrator, calibrators.Identity):
        return False
    return getattr(calibrator, "temperature", None) != train_temperature
