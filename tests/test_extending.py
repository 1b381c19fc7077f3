"""A new family, head, conditioner, objective and method, each one object in its table.

The ordinary commands work with each of them, on eight devices (in this process) and on
one (in another). Nothing but the tables is touched.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import extensions
import numpy as np
import pytest

from hypelora_jax import cli

SMALL = (
    "--config.data.num_examples=128",
    "--config.data.max_length=16",
    "--config.data.pad_to_max=true",  # one length, so one program each
    "--config.optim.num_epochs=1",
    "--config.log.every_steps=1",
    "--config.hyper.widths=(8,)",
)
# name -> (flags of train, format of export; "": the entry has no Hugging Face form)
ENTRIES = {
    "family": (("--config.model.path=random:toy", "--config.lora.targets=q"), "peft"),
    "head": (("--config.head.kind=mean",), ""),
    "conditioner": (("--config.condition.source=shared_vector",), "peft"),
    "objective": (("--config.loss.objective=absolute_error",), "peft"),
    "method": (("--config.method=biases",), "merged"),
}


def numbers(path: Path) -> tuple[str, ...]:
    """A file of texts whose label is a number, and the flags that train on it."""
    rng = np.random.default_rng(0)
    rows = [(f"{'good ' * n}film", n / 4) for n in rng.integers(0, 5, 200)]
    lines = [json.dumps({"text": text, "label": float(y)}) for text, y in rows]
    path.write_text("\n".join(lines) + "\n")
    return ("--config.data.source=files", f"--config.data.train={path}")


def commands(entries: tuple[str, ...], folder: Path) -> list[list[str]]:
    """train, evaluate, predict and, where it makes sense, export.

    Of one run with all the entries; the first one says how it is exported.
    """
    flags, kind = (
        sum((ENTRIES[name][0] for name in entries), ()),
        ENTRIES[entries[0]][1],
    )
    if "objective" in entries:
        flags = (*flags, *numbers(folder / "numbers.jsonl"))
    run, texts = str(folder / "run"), folder / "texts.jsonl"
    texts.write_text('{"text": "a good film"}\n{"text": "nothing"}\n')
    out = [
        ["train", "--config=smoke", f"--workdir={run}", *SMALL, *flags],
        ["evaluate", f"--workdir={run}"],
        [
            "predict",
            f"--workdir={run}",
            f"--input={texts}",
            f"--output={folder / 'answers.jsonl'}",
        ],
    ]
    if kind:
        target = f"--output={folder / 'exported'}"
        out.append(["export", f"--workdir={run}", f"--format={kind}", target])
    return out


def check(folder: Path, entry: str) -> dict:
    """What the commands left behind, and the metrics of validation."""
    rows = (folder / "answers.jsonl").read_text().splitlines()
    assert len(rows) == 2 and all("label" in json.loads(row) for row in rows)
    if ENTRIES[entry][1]:
        assert list((folder / "exported").glob("*.safetensors"))
    summary = json.loads((folder / "run" / "summary.json").read_text())
    losses = [
        row["loss"]
        for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
        if "loss" in (row := json.loads(line))
    ]
    assert np.isfinite(losses).all() and min(losses[1:]) < losses[0]
    return summary["metrics"]["validation"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_of_a_table_is_all_it_takes(entry, tmp_path, monkeypatch, capsys):
    extensions.install(monkeypatch.setitem)
    for argv in commands((entry,), tmp_path):
        assert cli.main(argv) == 0, capsys.readouterr().err
    judged = check(tmp_path, entry)
    assert judged["mae" if entry == "objective" else "nll"] > 0
    if not ENTRIES[entry][1]:
        target = f"--output={tmp_path / 'exported'}"
        capsys.readouterr()
        assert cli.main(["export", f"--workdir={tmp_path / 'run'}", target]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_same_on_one_device(tmp_path):
    runs = (("family", "conditioner", "objective"), ("method",), ("head",))
    assert sorted(sum(runs, ())) == sorted(ENTRIES)
    every = []
    for entries in runs:
        (tmp_path / entries[0]).mkdir()
        every += commands(entries, tmp_path / entries[0])
    done = subprocess.run(  # one process for all: importing jax takes seconds
        [sys.executable, extensions.__file__],
        input=json.dumps(every),
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == 0, done.stderr
    for entries in runs:
        check(tmp_path / entries[0], entries[0])


def test_without_its_line_in_the_table_a_name_is_refused(tmp_path, capsys):
    for entry, (flags, _) in ENTRIES.items():
        folder = tmp_path / entry
        argv = ["train", "--config=smoke", f"--workdir={folder}", *SMALL, *flags]
        assert cli.main(argv) == 2, entry
        assert "expected one of" in capsys.readouterr().err
