"""What a run folder holds when `train` comes to it, and whether the run may go on."""

import contextlib
from collections.abc import Iterator
from typing import Any

from absl import logging

from hypelora_jax import files
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.run import lock, records
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes
from hypelora_jax.train.session import Session, data_of, record_of

Record = dict[str, Any]  # what config.json holds
Summary = dict[str, Any]  # what summary.json holds


@contextlib.contextmanager
def locked(folder: Run) -> Iterator[None]:
    """Lock the run folder; process 0 takes the lock for all processes."""
    with contextlib.ExitStack() as stack:
        hold = lock.hold(folder) if processes.is_main() else contextlib.nullcontext()
        processes.together(lambda: stack.enter_context(hold))
        yield


def read(settings: Settings, folder: Run) -> tuple[Record | None, Summary | None]:
    """Record of the run to go on with, and its summary if it is finished.

    Raises:
      UserError: the folder holds another run.
    """
    record, checkpoints = records.read_record(folder), folder.checkpoints
    begun = checkpoints.exists() and any(checkpoints.iterdir())
    if record is None and begun:
        raise UserError(
            f"{folder.path} holds checkpoints and no config.json that says of what; "
            "choose another --workdir, or delete that folder"
        )
    if record is None or not begun:
        return None, None  # a run stopped before its first checkpoint begins anew
    records.check_same(folder.path, settings, record)
    if not folder.summary_file.exists():
        return record, None
    logging.info("%s is finished; nothing to do", folder.path)
    return record, files.read_json(folder.summary_file)


def check_or_begin(folder: Run, session: Session, record: Record | None) -> None:
    """Compare weights and data with the record; without one, process 0 writes it.

    Raises:
      UserError: the weights or the data have changed since the run was begun.
    """
    if record is not None:
        records.check_weights(folder.path, session.base, record)
        records.check_data(folder.path, data_of(session), record)
    elif processes.is_main():
        files.write_json(folder.config_file, record_of(session))
