"""64 clients at once for a minute, and the same service with batching off."""

import json
import subprocess
import sys
from pathlib import Path

import process
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_64_clients_for_a_minute_get_no_error_and_no_wrong_answer(tmp_path):
    """The benchmark ends with 1 if an answer is missing or wrong."""
    command = [sys.executable, "-m", "benchmarks", "--only=serve/batching"]
    command += ["--seconds=60", f"--json={tmp_path / 'rows.json'}"]
    # not the tests' programs, which are compiled in a hurry: the speed counts here
    env = {k: v for k, v in process.ENV.items() if k != "XLA_FLAGS"}
    told = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    print(told.stdout)
    assert told.returncode == 0, told.stderr
    told = json.loads((tmp_path / "rows.json").read_text())
    (notes,) = (one for one in told["details"] if one["name"] == "serve/batching")
    assert notes["largest_difference"] <= 1e-5
    assert notes["compiled"] == 0
    assert notes["mean_batch"] > 4
    assert told["rows"][0]["ratio"] >= 1.3
