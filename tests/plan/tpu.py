"""Plans of `hypelora plan` for TPU slices, each made once by a process."""

import functools
import json
import os
import subprocess
import sys


@functools.cache
def planned(*flags: str) -> tuple[int, dict, str]:
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # conftest's
    command = [sys.executable, "-m", "hypelora_jax.cli", "plan", *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr
