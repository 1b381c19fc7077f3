"""64 clients at once for a minute, and the same service with batching off."""

import json
import subprocess
import sys
from pathlib import Path

import process
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serve.py"
TRAIN = (
    *("train", "--config=smoke:method=lora", "--config.model.path=minilm"),
    *("--config.data.num_examples=96", "--config.data.max_length=64"),
    *("--config.optim.num_epochs=1", "--config.optim.batch_size=16"),
)


@pytest.mark.soak
def test_64_clients_for_a_minute_get_no_error_and_no_wrong_answer(tmp_path):
    made = process.run(*TRAIN, f"--workdir={tmp_path / 'run'}")
    assert made.returncode == 0, made.stderr
    command = [sys.executable, str(BENCHMARK), f"--workdir={tmp_path / 'run'}"]
    # not the tests' programs, which are compiled in a hurry: the speed counts here
    env = {k: v for k, v in process.ENV.items() if k != "XLA_FLAGS"}
    told = subprocess.run(command, capture_output=True, text=True, env=env)
    print(told.stdout)
    assert told.returncode == 0, told.stderr
    got = json.loads(told.stdout.splitlines()[-1])
    for one in ("load", "batched", "unbatched"):
        assert got[one]["errors"] == got[one]["wrong"] == 0
        assert got[one]["largest_difference"] <= 1e-5
    for one in (got["load"], got["unbatched"]):
        assert one["compiled"] == one["exit_code"] == 0
    assert got["load"]["seconds"] >= 60
    assert got["load"]["mean_batch"] > 4
    assert got["speedup"] >= 1.3
