"""A run of one seed, from its settings to a finished folder."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath
from rich.console import Console

from hypelora_jax import files
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import averaging, evaluation, summary
from hypelora_jax.report import html, run_tables, tables
from hypelora_jax.run import lock, records
from hypelora_jax.sharding import processes
from hypelora_jax.train import loop, session

Summary = dict[str, Any]
Record = dict[str, Any]  # what config.json holds


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Lock the run folder; process 0 takes the lock for all processes."""
    with contextlib.ExitStack() as stack:
        hold = lock.hold(path) if processes.is_main() else contextlib.nullcontext()
        processes.together(lambda: stack.enter_context(hold))
        yield


def train(settings: Settings, path: epath.Path, progress: bool) -> Summary:
    """Train into the folder or go on there, evaluate every split, and write a report.

    Raises:
      UserError: the folder holds another run, or the data or weights have changed.
    """
    record = processes.together(lambda: _recorded(settings, path))
    done = _finished(path) if record is not None else None
    processes.barrier("the folder is read")  # before process 0 writes in it
    if done is not None:
        return done
    started = time.monotonic()
    bench, plan = processes.together(lambda: _prepared(settings, path, record))
    if record is None and processes.is_main():
        files.write_json(path / "config.json", records.record(bench, plan))
    _print(run_tables.opening(bench, plan))
    begun_training = time.monotonic()
    trained = loop.train(bench, plan, path, progress)
    train_seconds = time.monotonic() - begun_training
    parameters = (trained.trainable, trained.frozen, trained.alpha, trained.step)
    run = evaluation.fitted(path, bench, *parameters, plan.edges)
    judged = summary.summary_of(run, plan.datasets)
    times = {
        "epochs": trained.epochs,
        "seconds": round(time.monotonic() - started, 1),
        "train_seconds": round(train_seconds, 1),  # of the last start only
    }
    return close(path, judged | times)


def close(path: epath.Path, judged: Summary) -> Summary:
    """Write a finished run's report and summary.json, and print its closing table.

    Of several processes the first writes.
    """
    if processes.is_main():
        view = html.load_run(path)
        html.write_report([view], path / "report" / "report.html", replicas=0)
        files.write_json(path / "summary.json", judged)
    processes.barrier("the run is written")
    _print(run_tables.closing(judged))
    return judged


def _recorded(settings: Settings, path: epath.Path) -> Record | None:
    """config.json of the run to go on with, None if there is nothing to go on with.

    Raises:
      UserError: the folder holds another run.
    """
    record = records.saved_record(path)
    begun = (path / "checkpoints").exists() and any((path / "checkpoints").iterdir())
    if record is not None and not begun:
        return None  # stopped before its first checkpoint
    if record is not None:
        records.check_same(path, settings, record)
    elif begun:
        raise UserError(
            f"{path} holds checkpoints and no config.json that says of what; choose "
            "another --workdir, or delete that folder"
        )
    return record


def _finished(path: epath.Path) -> Summary | None:
    """What summary.json holds; None before the run is finished."""
    if not (path / "summary.json").exists():
        return None
    logging.info("%s is finished; nothing to do", path)
    return records.read_json(path / "summary.json")


def _prepared(
    settings: Settings, path: epath.Path, record: Record | None
) -> tuple[session.Workbench, session.Plan]:
    """Model and data of a run, which must be those it was begun with."""
    corpus = session.load_corpus(settings)
    revision = record["model"]["revision"] if record else None
    bench = session.workbench(settings, corpus.task, revision)
    plan = session.plan(bench, corpus)
    averaging.check(bench, plan.datasets["calibration"].label)
    if record is not None:
        records.check_weights(path, bench, record)
        records.check_data(path, bench, plan, record)
    return bench, plan


def _print(table: tables.Table) -> None:
    if processes.is_main():
        Console(file=sys.stderr).print(tables.to_rich(table))
