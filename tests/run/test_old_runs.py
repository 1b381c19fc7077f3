"""Run folders that an earlier version wrote are read and gone on with as before.

`old_runs/make.py` made them and says how. Only the command line is used here, so that
these tests outlast every change of what is behind it.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run.old_runs.observe import losses, observe, placed

from hypelora_jax.cli import main

HERE = Path(__file__).parent / "old_runs"
PATHS = ("config.json", "seeds.json")  # files of a run that hold paths
CLOSE = 1e-6
# These magnify the rounding of logits, isotonic regression most, between near knots.
CALIBRATED = {"vector": 1e-5, "dirichlet": 1e-5, "beta": 1e-5, "isotonic": 1e-3}


# Every method, finished or going on; `make soak` runs all cases.
SHORT = {
    "finished": "full head_laplace lora_some_layers mlp_generated transformer_blended",
    "unfinished": "full hyper_ensemble hyper_mlp lora_frozen_a",
}


def cases(kind: str) -> list:
    names, short = (path.stem for path in (HERE / kind).glob("*.zip")), SHORT[kind]
    return [
        pytest.param(name, marks=() if name in short.split() else pytest.mark.soak)
        for name in sorted(names)
    ]


def copied(kind: str, case: str, to: Path) -> dict:
    """A copy of a case with its own paths; what is expected of it."""
    shutil.copytree(HERE / "shared", to / "shared")
    shutil.unpack_archive(HERE / kind / f"{case}.zip", to)
    for file in (file for name in PATHS for file in (to / "run").rglob(name)):
        file.write_text(placed(file.read_text(), to))
    return json.loads(placed((HERE / kind / f"{case}.json").read_text(), to))


def same(got, wanted, calibrated: float = CLOSE, where: str = "") -> None:
    """Equal structure and texts, and numbers that are close.

    `calibrated` is how close those must be that rest on a calibrator.
    """
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys(), where
        for name, value in wanted.items():
            same(got[name], value, calibrated, f"{where}/{name}")
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), where
        for i, value in enumerate(wanted):
            same(got[i], value, calibrated, f"{where}/{i}")
    elif isinstance(wanted, str):
        assert got == wanted, where
    else:
        raw = "/uncalibrated/" in where or where.startswith("/export/")
        close = CLOSE if raw else calibrated
        np.testing.assert_allclose(got, wanted, rtol=close, atol=close, err_msg=where)


@pytest.mark.parametrize("case", cases("finished"))
def test_a_finished_run_says_the_same(case, tmp_path, capsys):
    expected = copied("finished", case, tmp_path)

    def call(*args: str) -> str:
        code = main(list(args))
        said = capsys.readouterr()
        assert code == 0, said.err[-2000:]
        return said.out

    got = observe(call, tmp_path, expected["calibrator"], expected["format"])
    same(got, expected["seen"], CALIBRATED.get(expected["calibrator"], CLOSE))


@pytest.mark.parametrize("case", cases("unfinished"))
def test_an_unfinished_run_goes_on_to_the_same_losses(case, tmp_path, capsys):
    expected = copied("unfinished", case, tmp_path)
    run, wanted = tmp_path / "run", expected["losses"]
    before = losses(run)
    assert 0 < len(before) < len(wanted)
    same(before, wanted[: len(before)])
    assert main(["train", f"--workdir={run}", *expected["train"]]) == 0
    assert (
        f"going on from step {len(before)} of {len(wanted)}" in capsys.readouterr().err
    )
    same(losses(run), wanted)
    assert json.loads((run / "summary.json").read_text())["step"] > 0
