"""The parity tests hold for any golden folder, not for the one in the tree alone."""

import os
import subprocess
import sys
from pathlib import Path

from oracle import other_golden

ROOT = Path(__file__).parents[2]


def parity(folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [*command, "tests/parity"],
        env=env | {"HYPELORA_GOLDEN": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_other_sizes(tmp_path):
    other_golden.make(tmp_path)
    run = parity(tmp_path)
    assert run.returncode == 0, run.stdout[-4000:]
    emitted = len(other_golden.HYPERNETS) + len(other_golden.MODELS)
    trained = len(other_golden.MODELS) + len(other_golden.METHODS)
    others = 3 + 2  # encoder, metrics
    passed = emitted + 2 * trained + others  # trained in float32 and in float64
    assert run.stdout.splitlines()[-1].startswith(f"{passed} passed")


def test_an_empty_folder_fails(tmp_path):
    run = parity(tmp_path)
    assert run.returncode != 0 and "index.json" in run.stdout
