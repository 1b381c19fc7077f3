"""Check what a run folder contains when `train` starts, and if its run may continue."""

import contextlib
from collections.abc import Iterator
from typing import Any

from absl import logging

from hypelora_jax import files
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tables import digest
from hypelora_jax.errors import UserError
from hypelora_jax.run import lock, records
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes
from hypelora_jax.train.conditioning import targets, task_conditions
from hypelora_jax.train.session import Session, data_of, load_corpus, record_of

Record = dict[str, Any]  # content of config.json
Summary = dict[str, Any]  # content of summary.json


@contextlib.contextmanager
def locked(folder: Run) -> Iterator[None]:
    """Lock the run folder; process 0 takes the lock for all processes."""
    with contextlib.ExitStack() as stack:
        hold = lock.hold(folder) if processes.is_main() else contextlib.nullcontext()
        processes.together(lambda: stack.enter_context(hold))
        yield


def read(
    settings: Settings, folder: Run
) -> tuple[Settings, Record | None, Summary | None]:
    """Return the settings to train with, and the run's record and summary.

    The record is None if there is no run to continue, and the summary is None if the
    run is not finished.

    Raises:
      UserError: the folder contains another run.
    """
    record, checkpoints = records.read_record(folder), folder.checkpoints
    begun = checkpoints.exists() and any(checkpoints.iterdir())
    if record is None and begun:
        raise UserError(
            f"{folder.path} has checkpoints, but no config.json that says how they "
            "were trained; choose another --workdir, or delete that folder"
        )
    if record is None or not begun:
        return settings, None, None  # a run without a checkpoint starts again
    settings = records.check_same(folder.path, settings, record)
    if not folder.summary_file.exists():
        return settings, record, None
    _warn_of_changes(settings, folder, record)
    logging.info("%s is finished; nothing to do", folder.path)
    return settings, record, files.read_json(folder.summary_file)


def _warn_of_changes(settings: Settings, folder: Run, record: Record) -> None:
    """Warn if the data of a finished run are no longer those it was trained on."""
    if records.DIGESTS not in record:
        return
    try:
        with files.offline():
            splits = load_corpus(settings).splits
    except UserError:  # the data need not be here any more
        return
    digests = {name: digest(table) for name, table in splits.items()}
    if changed := records.changed_splits(digests, record):
        logging.warning(
            "the data has changed since %s was trained (other texts or labels in %s); "
            "to train on it, choose another --workdir",
            folder.path,
            ", ".join(changed),
        )


def check_or_begin(folder: Run, session: Session, record: Record | None) -> None:
    """Check weights and data against the record, or let process 0 write a new one.

    Raises:
      UserError: the weights or the data have changed since the run was begun.
    """
    if record is not None:
        records.check_weights(folder.path, session.base, record)
        records.check_data(folder.path, data_of(session), record)
    elif processes.is_main():
        if session.task_set is not None and session.tasks is not None:
            task_conditions.write(folder, session.task_set, session.tasks)
            targets.write(folder, session.frozen)
        files.write_json(folder.config_file, record_of(session))
