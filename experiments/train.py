"""Launcher of `hypelora train`, alone or as one of several processes.

    python experiments/train.py --config=glue:task=cola --workdir=DIR
    python experiments/train.py --config=... --workdir=DIR --distributed=HOST:PORT,2,0

The flags are those of `hypelora train`, and `--distributed`: `COORDINATOR,COUNT,RANK`;
`auto` (the default) asks the environment (Slurm, Open MPI, TPU pod); `off` forbids it.
"""

import os
import sys

import jax

from hypelora_jax import cli

# A process that is lost or hangs ends all others within about this time: the service
# behind jax.distributed misses its heartbeats. Its default is 100 s.
HEARTBEAT_TIMEOUT = 60


def several_processes() -> bool:
    """Does the environment say that this is one process of several?"""
    counts = [os.environ.get(n, "1") for n in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(hosts) > 1 or any(c.isdigit() and int(c) > 1 for c in counts)


def initialize(distributed: str) -> None:
    """Joins the other processes; must come before anything asks for devices."""
    if distributed == "off" or (distributed == "auto" and not several_processes()):
        return
    if distributed == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
        return
    try:
        coordinator, count, rank = distributed.split(",")
        count, rank = int(count), int(rank)
    except ValueError:
        sys.exit(
            f"train: error: --distributed={distributed}; wanted auto, off or "
            "HOST:PORT,COUNT,RANK"
        )
    jax.distributed.initialize(
        coordinator, count, rank, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
    )


def main(argv: list[str]) -> int:
    """Joins the processes, then trains; the exit code of `hypelora train`."""
    flag = "--distributed="
    distributed = [a.removeprefix(flag) for a in argv if a.startswith(flag)]
    initialize(distributed[-1] if distributed else "auto")
    return cli.main(["train", *(a for a in argv if not a.startswith(flag))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
