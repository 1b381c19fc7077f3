"""How long a run takes on this machine, and how long it may be within some minutes.

The first steps of the run itself are taken, in a folder that is thrown away; the rest
is counted: batches of an epoch by their lengths, evaluations, compilations.
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

STEPS = 8  # taken; the first compiles
FORWARD = 0.4  # of a step's time, an evaluation of as many examples: 0.36 for LoRA
COMPILE = 1.4  # a step and an evaluation, of the time that the step compiles
REPORT = 10.0  # seconds for metrics, diagrams and report.html at the end
DISK = 150e6  # bytes a second of a checkpoint: parameters and two moments of each
JUDGED = ("calibration", "validation")  # after each epoch
LEAST = 4  # batches of an epoch


class Pace(NamedTuple):
    """Seconds of the parts of a run."""

    once: float  # data, weights, compilation, evaluation and report at the end
    step: float  # an optimizer step, mean over an epoch
    judging: float  # evaluation and checkpoint at the end of an epoch
    steps: int  # of an epoch over all of train
    examples: int  # of train
    batch: int

    def seconds(self, epochs: int, examples: int) -> float:
        """Of a run of so many epochs over so many examples of train."""
        steps = self.steps * min(examples / self.examples, 1)
        return self.once + epochs * (steps * self.step + self.judging)


class Length(NamedTuple):
    """Epochs, and examples of train that each goes over."""

    epochs: int
    examples: int


def measure(settings: Settings, workdir: epath.Path) -> Pace:
    """Pace of a run, from its first steps; takes about a quarter of a minute.

    Args:
      settings: of the run; its length does not matter.
      workdir: folder to write to meanwhile; nothing stays there.
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
    """Seconds of each of the first steps, on the same rows again and again."""
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
    """The longest runs that take so many minutes together, all of the same length.

    Whole epochs over all of train, at least two; where that is too much, two epochs
    over its first examples.

    Args:
      paces: of the runs, by name.
      minutes: for all of them.
      epochs: never more than these.

    Raises:
      UserError: not even a few batches fit in.
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
        f"{minutes:.1f} minutes are too few for {', '.join(paces)}; wanted at least "
        f"{least:.1f} for them on this machine, or fewer runs"
    )


def say(name: str, pace: Pace, length: Length) -> None:
    """One line about a run to come."""
    logging.info(
        "%s: %.3f s a step, %d epochs of %d examples, about %.1f minutes",
        *(name, pace.step, *length, pace.seconds(*length) / 60),
    )
