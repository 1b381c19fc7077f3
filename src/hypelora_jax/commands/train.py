"""Train a run, or go on with one that was stopped or imported."""

import functools
import time
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from absl import logging

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError

if TYPE_CHECKING:
    from hypelora_jax.run.paths import Run
    from hypelora_jax.train.session import Session


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the config, which a continued run may omit, and the folder."""
    parser.add_argument(
        "--config",
        help=f"{flags.CONFIG}; by default the config of the run in --workdir, which "
        "goes on",
    )
    flags.add_workdir(parser)
    flags.add_offline(parser)


def run(config: Settings | None, workdir: str) -> None:
    """Train in the folder; without a config, use the one recorded in the folder."""
    from hypelora_jax.run import records
    from hypelora_jax.run.paths import Run

    files.keep_compiled()
    if config is None:
        record = records.read_record(Run.open(workdir))
        if record is None:
            raise UserError(
                f"the following argument is required: --config ({workdir} has no run "
                "to continue); see hypelora train --help"
            )
        config = records.settings_of(record)
    train(config, workdir)


def train(settings: Settings, workdir: str, progress: bool = True) -> dict[str, Any]:
    """Train in a folder, or continue its run; return the content of summary.json.

    With num_seeds > 1 the seeds seed, seed + 1, ... are trained one after the other in
    workdir/seed_0, seed_1, ..., and the summary has their means. Each member of a deep
    ensemble uses one seed, so no two ensembles share a member.

    Raises:
      UserError: a setting is not possible, a writer is not installed, or the folder
        contains another run, is in use, or cannot be written.
      KeyboardInterrupt, Preempted: a stop was requested; the same call continues.
    """
    from hypelora_jax.commands.shared import continuation, names, seeds
    from hypelora_jax.run import metric_writers, records
    from hypelora_jax.run.paths import Run
    from hypelora_jax.sharding import processes
    from hypelora_jax.train.interruption import StopRequest

    names.check(settings)
    metric_writers.check(settings.log.writers)
    settings = records.located(settings)
    if not processes.is_main():
        logging.set_verbosity(logging.WARNING)
    folder = processes.together(lambda: Run.create(workdir))
    processes.check_shared(folder.path)
    # at_once: nothing here needs saving. The training loop has its own StopRequest,
    # which saves a checkpoint before it stops.
    with continuation.locked(folder), StopRequest(at_once=True):
        settings = seeds.claim(settings, workdir, folder)
        if settings.num_seeds == 1:
            return _train_one(settings, folder, progress)
        one = functools.partial(_train_one, progress=progress)
        return seeds.train(settings, folder, one)


def _train_one(settings: Settings, folder: "Run", progress: bool) -> dict[str, Any]:
    """Train or continue one seed, evaluate every split, and write a report.

    Raises:
      UserError: the folder contains another run, or the data or weights have changed.
    """
    from hypelora_jax.commands.shared import closing, continuation
    from hypelora_jax.evaluate import evaluation, summary
    from hypelora_jax.report import run_tables
    from hypelora_jax.run import metric_writers, records
    from hypelora_jax.sharding import processes
    from hypelora_jax.train import loop

    settings, record, done = processes.together(
        lambda: continuation.read(settings, folder)
    )
    # Process 0 may write in the folder only after every process has read it.
    processes.barrier("the folder is read")
    if done is not None:
        return done
    started = time.monotonic()
    session = processes.together(lambda: _opened(settings, folder, record))
    closing.print_table(run_tables.opening(session))
    begun_training = time.monotonic()
    config = records.as_dict(settings)
    with metric_writers.Writers(settings.log.writers, folder, config) as writers:
        checkpoint, epochs = loop.train(session, folder, progress, writers)
        train_seconds = time.monotonic() - begun_training
        fitted = evaluation.of_checkpoint(folder, session, checkpoint)
        del checkpoint  # frees the optimizer's moments before evaluation
        judged = summary.summary_of(fitted, session.datasets)
        writers.finish(judged)
    times = {
        "epochs": epochs,
        "seconds": round(time.monotonic() - started, 1),
        "train_seconds": round(train_seconds, 1),  # since the last start only
    }
    return closing.close(folder, judged | times)


def _opened(
    settings: Settings, folder: "Run", record: dict[str, Any] | None
) -> "Session":
    """Open model and data; a continued run must have those it was started with."""
    from hypelora_jax.commands.shared import continuation
    from hypelora_jax.evaluate import averaging
    from hypelora_jax.train.checkpoint import warm_start
    from hypelora_jax.train.session import load_corpus, open_session, with_data

    corpus = load_corpus(settings)
    revision = record["model"]["revision"] if record else None
    session = with_data(open_session(settings, corpus.task, revision), corpus, record)
    if settings.ckpt.start and record is None:
        session = warm_start.started(session)
    averaging.check(session, session.datasets["calibration"].label)
    continuation.check_or_begin(folder, session, record)
    return session
