"""Our training steps in a process that does not import torch.

    python -m benchmarks.programs.our_training MODEL ROWS TOKENS

The last line is JSON.
"""

import json
import sys

from benchmarks import ours
from benchmarks.processes import peak_mib
from hypelora_jax.sharding import memory

STEPS = 3


def main(path: str, rows: str, tokens: str) -> None:
    """Do three steps, and print the peak memory."""
    memory.keep()
    step = ours.step(ours.ours(path), int(rows), int(tokens), True)
    for _ in range(STEPS):
        step.run()
    print(json.dumps({"peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
