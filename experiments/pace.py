"""Measure the pace of a run on this machine, and how long it can be in given minutes.

The first steps of the run are timed, in a temporary folder. The rest is computed from
the lengths of the batches in an epoch, the evaluations and the compilations.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import trees
from hypelora_jax.config.settings import LogConfig, Settings
from hypelora_jax.data import buckets
from hypelora_jax.data.batches import Dataset, take
from hypelora_jax.errors import UserError
from hypelora_jax.run import metric_log
from hypelora_jax.run.paths import Run
from hypelora_jax.train import loop
from hypelora_jax.train import session as session_lib

STEPS = 8  # steps to time; the first one compiles
FORWARD = 0.4  # time of an evaluation, per time of a step with as many rows; LoRA: 0.36
COMPILE = 1.4  # time to compile step and evaluation, per time to compile the step
REPORT = 10.0  # seconds for metrics, diagrams and report.html at the end
DISK = 150e6  # bytes per second of a checkpoint: parameters, two moments of each
JUDGED = ("calibration", "validation")  # evaluated after each epoch
LEAST = 4  # fewest batches of an epoch


class Pace(NamedTuple):
    """The parts of a run: their times in seconds, and the sizes of train."""

    once: float  # data, weights, compilation, evaluation and report at the end
    step: float  # an optimizer step, mean over an epoch
    judging: float  # evaluation and checkpoint at the end of an epoch
    steps: int  # steps of an epoch over all of train
    examples: int  # examples of train
    batch: int

    def seconds(self, epochs: int, examples: int) -> float:
        """Return the seconds of a run of `epochs` over `examples` of train."""
        steps = self.steps * min(examples / self.examples, 1)
        return self.once + epochs * (steps * self.step + self.judging)


class Length(NamedTuple):
    """Length of a run: epochs, and examples of train in each epoch."""

    epochs: int
    examples: int


def measure(settings: Settings, workdir: epath.Path) -> Pace:
    """Measure the pace of a run by its first steps, in about a quarter of a minute.

    Args:
      settings: settings of the run; its length does not matter.
      workdir: folder for temporary files, which are deleted at the end.
    """
    began = time.monotonic()
    corpus = session_lib.load_corpus(settings)
    session = session_lib.open_session(settings, corpus.task)
    session = session_lib.with_data(session, corpus)
    train, size = session.datasets["train"], settings.optim.batch_size
    batches = buckets.plan(train.lengths, session.edges, size, seed=0)
    lengths = np.array([length for _, length in batches])
    common = int(np.bincount(lengths).argmax())
    rows = next(rows for rows, length in batches if length == common)
    first, *later = _first_steps(session, train, rows, common, workdir)
    fixed = time.monotonic() - began - sum(later)
    step = float(np.median(later))
    compiling = max(first - step, 0.0) * (len(session.edges) - 1)
    mean = step * float(lengths.mean()) / common
    each = {n: -(-len(data.ids) // size) for n, data in session.datasets.items()}
    each.pop("train")
    judged = sum(n for split, n in each.items() if split.startswith(JUDGED))
    saved = 3 * trees.nbytes(session.trainable) / DISK
    return Pace(
        once=fixed + COMPILE * compiling + FORWARD * mean * sum(each.values()) + REPORT,
        step=mean,
        judging=FORWARD * mean * judged + saved,
        steps=len(batches),
        examples=len(train.ids),
        batch=size,
    )


def _first_steps(
    session: session_lib.Session,
    train: Dataset,
    rows: np.ndarray,
    length: int,
    workdir: epath.Path,
) -> list[float]:
    """Return the seconds of each of the first steps, all on the same rows."""
    size = session.settings.optim.batch_size
    settings = dataclasses.replace(
        session.settings,
        optim=dataclasses.replace(session.settings.optim, num_epochs=1),
        log=LogConfig(every_steps=1),
    )
    few = {split: take(train, rows) for split in JUDGED}
    few["train"] = take(train, np.resize(rows, STEPS * size))
    path = workdir / "pace"
    if path.exists():  # left by a process that was killed
        path.rmtree()
    cut = session._replace(
        settings=settings,
        datasets=few,
        edges=(length,),
        packed=None,
        steps_per_epoch=STEPS,
        total_steps=STEPS,
    )
    try:
        loop.train(cut, Run(path), progress=False)
        taken = metric_log.rows_until(Run(path).metric_log, STEPS)
    finally:
        path.rmtree(missing_ok=True)
    return [size / row["examples_per_s"] for row in taken if row["split"] == "train"]


def fit(paces: Mapping[str, Pace], minutes: float, epochs: int) -> Length:
    """Return the longest length with which all runs together take at most `minutes`.

    It is at least two epochs over all of train. If that takes too long, it is two
    epochs over the first examples of train.

    Args:
      paces: the pace of each run, by name.
      minutes: time for all runs together.
      epochs: the result has at most this many epochs.

    Raises:
      UserError: there is not enough time for even a few batches.
    """
    every = list(paces.values())
    whole = every[0].examples

    def seconds(length: Length) -> float:
        return sum(pace.seconds(*length) for pace in every)

    for n in range(epochs, 1, -1):
        if seconds(Length(n, whole)) <= 60 * minutes:
            return Length(n, whole)
    batch = every[0].batch
    few = min(epochs, 2)
    for batches in range(whole // batch, LEAST - 1, -1):
        if seconds(Length(few, batches * batch)) <= 60 * minutes:
            return Length(few, batches * batch)
    least = seconds(Length(few, LEAST * batch)) / 60
    raise UserError(
        f"{minutes:.1f} minutes are too few for {', '.join(paces)}; expected at least "
        f"{least:.1f} minutes on this machine. Give more minutes, or fewer runs"
    )


def say(name: str, pace: Pace, length: Length) -> None:
    """Log one line about a planned run."""
    logging.info(
        "%s: %.3f s a step, %d epochs of %d examples, about %.1f minutes",
        *(name, pace.step, *length, pace.seconds(*length) / 60),
    )
