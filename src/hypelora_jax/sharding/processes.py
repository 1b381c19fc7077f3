"""Several processes as one program: how they join, agree, and write files.

Every process runs the same program with the same settings, as JAX's multi-controller
runtime expects. Process 0 alone writes text files.
"""

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from hypelora_jax.errors import UserError

T = TypeVar("T")
MESSAGE = 400  # bytes of an error message that other processes see
# If a process is lost or hangs, the service behind jax.distributed misses its
# heartbeats and ends all others after about this many seconds. JAX's default is 100.
HEARTBEAT_TIMEOUT = 60


def is_main() -> bool:
    """True in process 0, which writes the text files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _gather(value: np.ndarray) -> np.ndarray:
    """Return the values of all processes, stacked (P, ...)."""
    return np.asarray(multihost_utils.process_allgather(value[None], tiled=True))


def agreed(signal: int | None, waits: bool) -> int | None:
    """Return the signal that any process got, so that all stop at the same step.

    Asking makes processes wait for each other. Several processes therefore ask only if
    `waits` is set, that is, when they wait for the devices anyway.
    """
    if jax.process_count() == 1:
        return signal
    if not waits:
        return None
    return int(_gather(np.asarray(signal or 0, np.int32)).max()) or None


def together(what: Callable[[], T]) -> T:
    """Call `what()` on every process; if it fails on one, all raise its message.

    A process that failed alone would leave the others waiting for it.

    Raises:
      UserError: a process raised an error; the message names the process.
    """
    if jax.process_count() == 1:
        return what()
    try:
        result = what()
    except (UserError, OSError) as error:
        _messages(str(error) or type(error).__name__)
        raise
    messages = _messages("")
    for rank, message in enumerate(messages):
        if message:
            raise UserError(f"process {rank} of {len(messages)}: {message}")
    return result


def _messages(own: str) -> list[str]:
    """Return the messages of all processes; one without an error passes ""."""
    text = own.encode()[:MESSAGE]
    padded = np.zeros(MESSAGE, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return [
        bytes(row).rstrip(b"\0").decode(errors="replace") for row in _gather(padded)
    ]


def check_shared(folder: epath.Path, seconds: float = 5.0) -> None:
    """Check that a folder is the same one for all processes.

    Process 0 writes a token and all must read it, within the `seconds` that a network
    file system may need to show it.

    Raises:
      UserError: a process cannot read the token; every process raises and names it.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(uuid.uuid4().bytes, np.uint8)
    token = multihost_utils.broadcast_one_to_all(own).astype(np.uint8).tobytes().hex()
    path = folder / f".token-{token}"
    # every process takes part, so that a failed write on process 0 stops all of them
    if is_main():
        together(lambda: path.write_text(token))
    else:
        together(lambda: None)
    seen = _appears(path, token, seconds)
    blind = np.flatnonzero(~_gather(np.asarray(seen)))
    if is_main():
        path.unlink(missing_ok=True)
    if len(blind):
        raise UserError(
            f"process {', '.join(map(str, blind))} cannot read what process 0 wrote "
            f"in its --workdir (here {folder}); expected one folder that all "
            "processes share, by a network file system or gs://..."
        )


def _appears(path: epath.Path, text: str, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while True:
        try:
            if path.read_text() == text:
                return True
        except OSError:
            pass
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)


def launcher(environ: Mapping[str, str] = os.environ, dev: str = "/dev") -> str:
    """Return the launcher that started several processes, or "" if there is none.

    The variables of a TPU VM do not say whether it is one host of several. JAX has to
    ask the metadata server, so "TPU VM" is the answer wherever there are TPU chips.
    """
    counts = {
        "Slurm": environ.get("SLURM_NTASKS", "1"),
        "Open MPI": environ.get("OMPI_COMM_WORLD_SIZE", "1"),
        "multislice": environ.get("MEGASCALE_NUM_SLICES", "1"),
    }
    for name, count in counts.items():
        if count.isdigit() and int(count) > 1:
            return name
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        return "TPU pod" if len(hosts.split(",")) > 1 else ""
    chips = [*Path(dev).glob("accel[0-9]*"), *Path(dev).glob("vfio/[0-9]*")]
    wanted = environ.get("JAX_PLATFORMS", "tpu")
    on_tpu = chips and "tpu" in wanted and "TPU_SKIP_MDS_QUERY" not in environ
    return "TPU VM" if on_tpu and importlib.util.find_spec("libtpu") else ""


def initialize(
    distributed: str = "auto", heartbeat_timeout: int = HEARTBEAT_TIMEOUT
) -> None:
    """Join the other processes. Call it before anything asks for devices.

    Args:
      distributed: `HOST:PORT,COUNT,RANK`; `auto` asks the environment (TPU pod, Slurm,
        Open MPI); `off` forbids it.
      heartbeat_timeout: seconds after which a silent process counts as lost.

    Raises:
      UserError: the value is unknown, or the other processes cannot be reached.
    """
    found = launcher() if distributed == "auto" else ""
    if distributed == "off" or (distributed == "auto" and not found):
        return
    place = {} if found else _parsed(distributed)
    # sums between CPU processes need it; it is the default since jax 0.10
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # on CPU two programs in flight can wait for each other for ever
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(**place, heartbeat_timeout_seconds=heartbeat_timeout)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot join the other processes ({found or distributed}: {why}); "
            "expected a coordinator that all processes reach, and each rank once. "
            "Check the launcher, or pass --distributed=HOST:PORT,COUNT,RANK, or off "
            "for one process"
        ) from error
    rank, count = jax.process_index(), jax.process_count()
    logging.info(
        "process %d of %d (%s)", rank, count, found or place["coordinator_address"]
    )


def _parsed(text: str) -> dict[str, Any]:
    """Parse HOST:PORT,COUNT,RANK into arguments of `jax.distributed.initialize`."""
    try:
        coordinator, count, rank = text.split(",")
        if ":" not in coordinator or not 0 <= int(rank) < int(count):
            raise ValueError
        return {
            "coordinator_address": coordinator,
            "num_processes": int(count),
            "process_id": int(rank),
        }
    except ValueError:
        raise UserError(
            f"--distributed is {text}; expected auto, off or HOST:PORT,COUNT,RANK "
            "with RANK from 0 to COUNT - 1"
        ) from None
