"""Launcher of `hypelora train`, alone or as one of several processes.

    python experiments/train.py --config=glue:task=cola --workdir=DIR
    python experiments/train.py --config=... --workdir=DIR --distributed=HOST:PORT,2,0

The flags are those of `hypelora train`, and `--distributed`: `COORDINATOR,COUNT,RANK`;
`auto` (the default) asks the environment (TPU pod, Slurm, Open MPI); `off` forbids it.
"""

import sys

from hypelora_jax import cli
from hypelora_jax.exits import explain
from hypelora_jax.sharding import processes

# A process that is lost or hangs ends all others within about this time: the service
# behind jax.distributed misses its heartbeats. Its default is 100 s.
HEARTBEAT_TIMEOUT = 60
FLAG = "--distributed="


def initialize(distributed: str) -> None:
    """Joins the other processes; must come before anything asks for devices."""
    processes.initialize(distributed, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)


def main(argv: list[str]) -> int:
    """Joins the processes, then trains; the exit code of `hypelora train`."""
    distributed = [a.removeprefix(FLAG) for a in argv if a.startswith(FLAG)]
    try:
        initialize(distributed[-1] if distributed else "auto")
    except (Exception, KeyboardInterrupt) as error:
        code, line = explain(error)
        print(f"hypelora: {line}", file=sys.stderr)
        return code
    return cli.main(["train", *(a for a in argv if not a.startswith(FLAG))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
