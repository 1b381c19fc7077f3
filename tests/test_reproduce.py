"""experiments/reproduce.py as a process that is stopped, and its parts."""

import importlib.util
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import process
import pytest

from hypelora_jax.calibration import metrics, scores
from hypelora_jax.configs import paper
from hypelora_jax.report import beside, runs
from hypelora_jax.settings import from_dict
from hypelora_jax.train import pace, validate
from hypelora_jax.types import UserError

SCRIPT = Path(__file__).parents[1] / "experiments" / "reproduce.py"
SMALL = (
    "--config.hyper.widths=(16,)",
    "--config.data.max_length=48",
    "--config.optim.num_epochs=6",
    "--config.log.every_steps=1",
    "--config.ckpt.every_steps=1",
)


@pytest.fixture(scope="module")
def script():
    """The module experiments/reproduce.py."""
    spec = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def flags(tmp_path):
    """Of a small CoLA: --data, --workdir, --backbone and what makes runs short."""
    folder = tmp_path / "glue" / "CoLA"
    folder.mkdir(parents=True)
    words = np.random.default_rng(0).choice(["go", "and", "the", "cat"], (232, 5))
    rows = [f"x\t{i % 2}\t\t{' '.join(line)}" for i, line in enumerate(words)]
    (folder / "train.tsv").write_text("\n".join(rows[:192]))
    (folder / "dev.tsv").write_text("\n".join(rows[192:]))
    own = [f"--data={tmp_path / 'glue'}", f"--workdir={tmp_path / 'work'}"]
    return [*own, "--tasks=cola", "--seeds=1", "--backbone=random:tiny", *SMALL]


def stamps(folder: Path) -> dict[Path, int]:
    """Every file below a folder, and when it was written."""
    return {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (".lock", ".write_probe")
    }


def in_process(script, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *flags])
    script.reproduce(script.arguments())


def steps_of(workdir: Path) -> list[int]:
    return [row["step"] for row in process.rows(workdir) if row["split"] == "train"]


def test_an_interrupted_table_repeats_nothing(
    script, flags, tmp_path, monkeypatch, capsys
):
    flags = ["--table=2", "--rows=lora", *flags]
    work = tmp_path / "work"
    first = process.python(str(SCRIPT), *flags)
    process.wait_for_step(first, work / "cola/lora", 2)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 130, err[-2000:]
    saved = int(re.search(r"reproduce: interrupted: saved at step (\d+)", err)[1])
    before = stamps(work / "cola/lora/checkpoints" / str(saved))

    in_process(script, monkeypatch, *flags)
    printed = capsys.readouterr().out
    assert "63.94 ± 0.21" in printed and "0.120 ± 0.025" in printed
    assert steps_of(work / "cola/lora") == list(range(1, 19)), "each step once"
    kept = stamps(work / "cola/lora/checkpoints")
    assert before.keys() - kept.keys() or before.items() <= kept.items()
    held = json.loads((work / "table2.json").read_text())["tasks"]["cola"]["lora"]
    judged = json.loads((work / "cola/lora/eval/validation/metrics.json").read_text())
    assert held["mcc"]["ours"]["value"] == judged["uncalibrated"]["mcc"]
    assert held["ece"]["ours"]["value"] == judged["uncalibrated"]["ece"]
    assert held["ece"]["ours"]["low"] < held["ece"]["ours"]["high"]
    assert held["mcc"]["paper"] == {"mean": 0.6394, "std": 0.0021}

    done = stamps(work / "cola")
    figure = ["--table=figure2", *flags[1:]]
    in_process(script, monkeypatch, *figure)
    assert stamps(work / "cola") == done, "a finished row is not touched"
    assert (work / "figure2.png").read_bytes().startswith(b"\x89PNG")
    assert "## " not in (work / "figure2.md").read_text()


@pytest.mark.soak
def test_a_killed_table_with_a_budget_goes_on_with_its_rows(flags, tmp_path):
    flags = ["--table=2", "--rows=lora,hyper_mlp_fixed", "--budget=9", *flags]
    work = tmp_path / "work"
    first = process.python(str(SCRIPT), *flags)
    process.wait_for_step(first, work / "cola/hyper_mlp_fixed", 2)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=300)
    done = stamps(work / "cola/lora") | stamps(work / "lengths.json")
    second = process.python(str(SCRIPT), *flags)
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err[-2000:]
    assert "lora is finished; nothing to do" in err and "going on from step" in err
    assert re.search(r"cola/hyper_mlp_fixed: [\d.]+ s a step, 6 epochs of 96", err)
    assert done == stamps(work / "cola/lora") | stamps(work / "lengths.json")
    assert steps_of(work / "cola/hyper_mlp_fixed") == list(range(1, 19))
    assert "48.25 ± 13.01" in out
    other = process.python(str(SCRIPT), *flags, "--budget=8")
    _, err = other.communicate(timeout=300)
    assert other.returncode == 2 and err.count("\n") == 1
    assert "was begun with {'budget': 9.0" in err
