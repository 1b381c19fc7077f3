"""Launch `hypelora train`, alone or as one of several processes.

    python experiments/train.py --config=glue:task=cola --workdir=DIR
    python experiments/train.py --config=... --workdir=DIR --distributed=HOST:PORT,2,0

The flags are those of `hypelora train` and `--distributed`. Its value is
`COORDINATOR,COUNT,RANK`, or `auto` (the default), which asks the environment (TPU pod,
Slurm, Open MPI), or `off`, which trains alone.
"""

import sys

from hypelora_jax import cli
from hypelora_jax.errors import explain
from hypelora_jax.sharding import processes

FLAG = "--distributed="


def main(argv: list[str]) -> int:
    """Join the processes, train, and return the exit code of `hypelora train`."""
    distributed = [a.removeprefix(FLAG) for a in argv if a.startswith(FLAG)]
    try:
        processes.initialize(distributed[-1] if distributed else "auto")
    except (Exception, KeyboardInterrupt) as error:
        code, line = explain(error)
        print(f"hypelora: {line}", file=sys.stderr)
        return code
    return cli.main(["train", *(a for a in argv if not a.startswith(FLAG))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
