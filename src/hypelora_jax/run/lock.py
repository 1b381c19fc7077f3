"""A lock on a run folder, which the operating system drops if its process dies."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

from absl import logging

from hypelora_jax import files
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run


@contextlib.contextmanager
def hold(run: Run) -> Iterator[None]:
    """Lock a run folder while the block runs.

    The lock is flock(2) on DIR/.lock, so a killed process leaves the file but no lock.
    Object stores (gs://...) and some network file systems have no locks. Then the log
    says so, and the run goes on without a lock.

    Raises:
      UserError: another run uses the folder; the message names its process.
    """
    workdir = run.path
    if "://" in str(workdir):
        logging.info(
            "%s is on an object store, which has no locks; start only one run there",
            workdir,
        )
        yield
        return
    import fcntl  # local, because Windows does not have this module

    with open(run.lock_file, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by {_owner(file.read())}; expected one run per "
                "folder. Wait for that run or stop it, or choose another workdir"
            ) from e
        except OSError as e:
            logging.info(
                "%s cannot be locked (%s); start only one run there",
                workdir,
                e.strerror,
            )
        file.truncate(0)
        file.write(files.to_json(_self()))
        file.flush()
        yield


def _self() -> dict[str, str | int]:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started}


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']} since {owner['started']}"
    except (ValueError, KeyError, TypeError):  # the owner has not written its name yet
        return "another process"
