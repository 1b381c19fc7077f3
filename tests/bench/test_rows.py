"""What the benchmark writes: JSON of a fixed shape, its table, and its page."""

import json
import os
import re
import subprocess
import sys

import documented
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import __main__ as command
from benchmarks import case, page, plots, rows, timing
from benchmarks.cases import CASES, device
from benchmarks.cases.step import Shape
from benchmarks.programs import our_device
from hypelora_jax.errors import UserError

TIMES = timing.Compared(
    timing.Times([1.0, 1.0, 2.0], [2.0, 2.0, 4.0]),
    timing.Times([1.5, 1.6, 2.8], [3.0, 3.2, 5.6]),
    "sdpa",
    {"eager": 9.0, "sdpa": 1.5},
)
ROW = rows.of_times("step/x", "torch+peft", TIMES, seconds_to_compile=3.25)


@pytest.fixture
def measured(monkeypatch, capsys):
    """A function that runs the command with one case; returns (code, out, err)."""

    def run(found, *argv):
        def yields(options):
            for one in found if isinstance(found, list) else [found]:
                if isinstance(one, Exception):
                    raise one
                yield one

        cases = {"step/x": case.Case(yields), "padding/x": case.Case(yields, "glue")}
        monkeypatch.setattr(command, "CASES", cases)
        return command.main(argv), *capsys.readouterr()

    return run


def test_the_json_has_the_fields_that_programs_read(measured, tmp_path):
    path = tmp_path / "rows.json"
    code, out, err = measured(ROW, "--only=step", f"--json={path}")
    told = json.loads(path.read_text())
    assert code == 0
    assert set(told) == {"machine", "versions", "command", "date", "rows", "details"}
    assert told["rows"] == [
        {
            "name": "step/x",
            "rival": "torch+peft",
            "ratio": 1.5,
            "low": 1.4,
            "high": 1.6,
            "ours": 1.0,
            "theirs": 1.6,
            "unit": "s",
        }
    ]
    (notes,) = told["details"]
    assert notes["seconds_in_trial"] == {"eager": 9.0, "sdpa": 1.5}
    assert (notes["fastest"], notes["rounds"], notes["cpu_ratio"]) == ("sdpa", 3, 1.5)
    assert notes["seconds_to_compile"] == 3.25
    assert told["machine"]["cores"] >= 1 and "jax" in told["versions"]
    assert told["command"] == f"python -m benchmarks --only=step --json={path}"
    line = "| `step/x` | torch+peft | 1.5 | 1.4 to 1.6 | 1 | 1.6 | s |"
    assert line in out.splitlines() and line in err.splitlines()


def test_a_wrong_comparison_ends_with_1_and_one_line(measured):
    code, out, err = measured(rows.Mismatch("the loss is 1 here and 2 there"))
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: the loss is 1 here and 2 there"


def test_a_failure_keeps_the_rows_before_it(measured, tmp_path):
    path = tmp_path / "rows.json"
    code, _, _ = measured([ROW, rows.Mismatch("other numbers")], f"--json={path}")
    assert code == 1
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["step/x"]


def test_rows_that_need_a_folder_are_left_out_without_it(measured):
    code, _, err = measured(ROW)
    assert code == 0 and "padding/x is left out: it needs --glue=DIR" in err
    code, _, err = measured(ROW, "--only=padding")
    assert (code, err.count("\n")) == (2, 1)
    assert "padding/x cannot run without --glue=DIR" in err


def test_resume_leaves_out_what_the_file_has(measured, tmp_path):
    path = tmp_path / "rows.json"
    code, _, _ = measured(ROW, f"--json={path}", "--only=step")
    whole = json.loads(path.read_text())
    code, out, err = measured(
        rows.Mismatch("not run"), f"--json={path}", "--resume", "--only=step"
    )
    assert code == 0 and "| `step/x` |" in out and "step/x" not in err
    assert rows.from_json(whole) == rows.from_json(json.loads(path.read_text()))
    assert rows.from_json(whole)[0].detail() == ROW.detail()
    path.unlink()
    again = measured(ROW, f"--json={path}", "--resume", "--only=step")
    assert again[0] == 0 and json.loads(path.read_text())["rows"] == whole["rows"]
    code, _, err = measured(ROW, "--resume", "--only=step")
    assert (code, err.count("\n")) == (2, 1) and "expected --json=FILE" in err


def test_the_rows_of_a_device_need_one(capsys):
    assert command.main(["--only=device"]) == 2
    assert "cannot run without --device=gpu" in capsys.readouterr().err
    assert command.main(["--only=device", "--device=gpu"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "need a GPU, but JAX finds a CPU; run them where `hypelora doctor`" in line


def test_the_script_for_a_gpu_says_that_there_is_none(tmp_path):
    script = documented.ROOT / "benchmarks" / "device.sh"
    env = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    command = ["sh", str(script), str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "JAX finds no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


OWN = {"seconds": [0.5] * 6, "seconds_to_compile": 9.0, "peak_mib": 200.0}
OTHER = {
    "seconds": {"sdpa": [0.75] * 6, "sdpa, torch.compile": [0.6] * 6},
    "peak_mib": {"sdpa": 100.0, "sdpa, torch.compile": 300.0},
    "faults": {},
    "distance": 0.01,
}


def test_rows_of_a_device_by_hand():
    setting = device.SETTINGS[0]
    own = OWN | {"kind": "NVIDIA H200"}
    memory, mfu, step = device.rows(setting, own, OTHER)
    assert [x.name for x in (memory, mfu)] == [
        f"{setting.name}/memory",
        f"{setting.name}/mfu",
    ]
    assert (memory.ratio, memory.ours, memory.theirs) == (0.5, 200, 100)
    # twice 12 layers of 2 N (4 D^2 + 2 D F) are 1.39 TFLOP, attention is 0.06
    assert mfu.ours == pytest.approx(1.45 / 0.5, rel=0.01) and mfu.theirs == 989
    assert mfu.ratio == pytest.approx(mfu.ours / 989)
    assert (step.name, step.ours, step.theirs) == (setting.name, 0.5, 0.6)
    assert step.ratio == pytest.approx(1.2)
    assert step.notes["fastest"] == "sdpa, torch.compile"
    assert len(device.rows(setting, own | {"kind": "another"}, OTHER)) == 2
    for apart in (0.5, float("nan")):
        with pytest.raises(rows.Mismatch, match="logits differ by"):
            device.rows(setting, own, OTHER | {"distance": apart})


def test_our_side_of_a_device_runs_on_a_cpu(tmp_path):
    """The torch side is in tests/oracle."""
    setting = device.Setting(Shape("random:tiny", 4, 16), True, "cpu", "float32", 2)
    path = str(tmp_path / "tensors")
    spec = {"path": "random:tiny", "rows": 4, "tokens": 16, "steps": 2}
    told = our_device.measured(spec | {"model": setting.model, "tensors": path})
    assert len(told["seconds"]) == 2 and told["kind"] == "cpu"
    assert told["model"]["attention_probs_dropout_prob"] == 0
    found = load_file(path)
    assert found["logits"].shape == (4, 2) and found["batch.input_ids"].shape == (4, 16)
    named = [n for n in found if "lora_B" in n]
    assert len(named) == 4 and all(np.abs(found[n]).max() > 0 for n in named)


def test_the_page_says_that_no_device_was_measured():
    none = "No GPU was measured"
    assert none in page.text([RUN])
    row = ROW._replace(name="device/x").fields()
    assert none not in page.text([RUN | {"rows": [row]}])


def test_only_takes_beginnings_of_names():
    def names(only):
        return list(case.chosen(CASES, only, case.Options(5.0, "g", "b", "gpu"))[0])

    assert names("step/minilm_32x32") == ["step/minilm_32x32"]
    assert names("gemm,many/8") == ["gemm/minilm_32x128", "gemm/roberta_base_16x64"] + [
        "many/8x4"
    ]
    assert names("") == list(CASES)
    assert "step_nodrop/minilm_8x512" in names("step")
    with pytest.raises(UserError, match="no row begins with 'stop'; expected .*step"):
        names("stop")


def test_counts_are_better_when_they_are_smaller():
    assert rows.of_counts("m", "r", 2.0, 3.0, "MiB").ratio == 1.5
    assert rows.of_counts("m", "r", 0.0, 0.0, "MiB").ratio == 1.0


RUN = {
    "machine": {
        "cpu": "A Processor",
        "cores": 2,
        "memory_gib": 8.0,
        "system": "Linux",
        "device": "cpu",
        "devices": 1,
    },
    "versions": {"jax": "0.10"},
    "command": "python -m benchmarks --only=step",
    "date": "2026-11-29",
    "rows": [ROW.fields()],
    "details": [ROW.detail()],
}


def test_the_page_names_machine_versions_command_and_date():
    text = page.section(RUN)
    for part in ("A Processor", "2 CPU cores", "jax 0.10", RUN["command"], RUN["date"]):
        assert part in text
    assert "| `step/x` | torch+peft | 1.5 |" in text
    assert "No row is behind its rival." in text


def test_the_page_says_where_we_are_behind():
    slow = ROW._replace(ratio=0.8).fields()
    text = page.section(RUN | {"rows": [slow, slow | {"rival": "lora"}]})
    assert "Behind the rival: `step/x` (0.80 of torch+peft)." in text


def test_the_page_has_laws_and_a_plot(tmp_path):
    grown = {"name": "growth/tokens", "unit": "token", "values": [1, 2, 4]}
    grown |= {"seconds": [0.3, 0.6, 1.8], "coefficients": [0.2, -0.05, 0.1]}
    details = [grown | {"largest_deviation": 0.031}]
    text = page.section(RUN | {"details": details})
    assert (
        "- tokens, n from 1 to 4: 200 ms - 50 ms x n + 100 ms x n²; no value is more "
        "than 3% off." in text
    )
    assert "](img/growth.png)" in text and "](img" not in page.section(RUN)
    plots.draw(details, tmp_path / "img" / "growth.png")
    assert (tmp_path / "img" / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_docs_benchmarks_is_the_page_of_what_was_measured():
    """`python -m benchmarks --page` writes it again."""
    assert page.PAGE.read_text() == page.text(page.measured())


def test_every_subject_is_explained_on_the_page():
    text = (documented.ROOT / "docs" / "benchmarks.md").read_text()
    for subject in dict.fromkeys(name.split("/")[0] for name in CASES):
        assert re.search(rf"^\| `{subject}` \|", text, re.M), subject


@pytest.mark.parametrize("given", [["--glue=/a b/c"], ["--glue", "/a b/c"]])
def test_the_command_that_is_shown_names_no_folder_of_the_machine(given):
    told = command.shown(["--only=epoch", *given, "--json=x.json"])
    assert "/a b" not in told and "--json=x.json" in told
    assert told.replace("=DIR", " DIR").endswith("--glue DIR --json=x.json")
