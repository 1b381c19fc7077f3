"""Several processes as one program: joining, agreeing, and who writes text.

JAX's multi-controller runtime does the work. Every process runs the same program on the
same settings; process 0 alone writes text files.
"""

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from hypelora_jax.errors import UserError

T = TypeVar("T")
MESSAGE = 400  # bytes of another process's message that are passed on
# A process that is lost or hangs ends all others within about this time: the service
# behind jax.distributed misses its heartbeats. Its default is 100 s.
HEARTBEAT_TIMEOUT = 60


def is_main() -> bool:
    """Whether this process writes text files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _gather(value: np.ndarray) -> np.ndarray:
    """(P, ...): the value of each process."""
    return np.asarray(multihost_utils.process_allgather(value[None], tiled=True))


def agreed(signal: int | None, waits: bool) -> int | None:
    """The signal to obey: that of any process, so that all stop at the same step.

    Several processes ask each other only where `waits` says that they wait for the
    devices anyway.
    """
    if jax.process_count() == 1:
        return signal
    if not waits:
        return None
    return int(_gather(np.asarray(signal or 0, np.int32)).max()) or None


def together(what: Callable[[], T]) -> T:
    """`what()` on every process; where one is refused, all are, with its message.

    A process that stopped alone would leave the others waiting for it.

    Raises:
      UserError: what a process raised.
    """
    if jax.process_count() == 1:
        return what()
    result, error = None, None
    try:
        result = what()
    except (UserError, OSError) as e:
        error = e
    text = b"" if error is None else (str(error) or type(error).__name__).encode()
    padded = np.zeros(MESSAGE, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)[:MESSAGE]
    said = [
        bytes(row).rstrip(b"\0").decode(errors="replace") for row in _gather(padded)
    ]
    if error is not None:
        raise error
    for rank, line in enumerate(said):
        if line:
            raise UserError(f"process {rank} of {len(said)}: {line}")
    return result


def check_shared(folder: epath.Path, seconds: float = 5.0) -> None:
    """Refuse a folder that is not the same one for all processes.

    Process 0 writes a token, and all must read it; `seconds` is how long a network
    file system may take to show it.

    Raises:
      UserError: on every process, naming those that cannot.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(uuid.uuid4().bytes, np.uint8)
    token = multihost_utils.broadcast_one_to_all(own).astype(np.uint8).tobytes().hex()
    path = folder / f".token-{token}"
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
            f"process {', '.join(map(str, blind))} cannot read what process 0 wrote in "
            f"its --workdir (here {folder}); wanted one folder that all processes "
            "share, by a network file system or gs://..."
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
    """What has started several processes, as the environment says; "" for nothing.

    A TPU VM's own variables do not say whether it is one host of several, so JAX asks
    its metadata server: that is done wherever TPU chips are.
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
    distributed: str = "auto", heartbeat_timeout: int = HEARTBEAT_TIMEOUT, **options
) -> None:
    """Join the other processes; comes before anything asks for devices.

    Args:
      distributed: `HOST:PORT,COUNT,RANK`; `auto` asks the environment (TPU pod, Slurm,
        Open MPI); `off` forbids it.
      heartbeat_timeout: seconds after which a silent process counts as lost.
      options: more arguments of `jax.distributed.initialize`.

    Raises:
      UserError: another value, or no way to the other processes.
    """
    found = launcher() if distributed == "auto" else ""
    if distributed == "off" or (distributed == "auto" and not found):
        return
    place = () if found else _parsed(distributed)
    # the default of jax 0.10 already, and what sums between CPU processes need
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # two programs in flight can wait for each other for ever, on CPU alone
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            *place, heartbeat_timeout_seconds=heartbeat_timeout, **options
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot join the other processes ({found or distributed}: {why}); wanted "
            "a coordinator that all reach, and each rank once: check the launcher, or "
            "pass --distributed=HOST:PORT,COUNT,RANK, or off for one process"
        ) from error
    rank, count = jax.process_index(), jax.process_count()
    logging.info("process %d of %d (%s)", rank, count, found or place[0])


def _parsed(text: str) -> tuple[str, int, int]:
    try:
        coordinator, count, rank = text.split(",")
        if ":" not in coordinator or not 0 <= int(rank) < int(count):
            raise ValueError
        return coordinator, int(count), int(rank)
    except ValueError:
        raise UserError(
            f"--distributed={text}; wanted auto, off or HOST:PORT,COUNT,RANK with RANK "
            "from 0 to COUNT - 1"
        ) from None
