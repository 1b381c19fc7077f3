"""Every command of the documentation is run, small, but for those of one table."""

import contextlib
import io
import json
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import adapter_sets
import corpora
import documented
import flips
import numpy as np
import process
import pytest
import serving
import task_sets

from hypelora_jax import cli

ROOT = documented.ROOT
LINES = documented.lines()
TPU, CLOUD = "needs a TPU", "needs a cloud account"
DOWNLOAD, LONG = "a download", "more than 5 minutes"
EXTRA = "needs packages that only tests/oracle have"
# The one table of lines that are parsed and not run: how a line begins, and why.
NOT_RUN = {
    'hypelora train --config=demo --workdir=runs/demo "--config.log.writers': EXTRA,
    "make demo": LONG,
    "make lint test": LONG,
    "make plan": DOWNLOAD,
    "pytest -m soak tests/calibration/test_coverage.py": LONG,
    "python -m benchmarks": LONG,
    "python experiments/launch/gke.py": CLOUD,
    "python -m experiments.relabelling": LONG,
    "python experiments/domains.py": LONG,
    "python experiments/polarity.py": LONG,
    "python experiments/reconstruct.py": LONG,
    "python experiments/relabel.py": LONG,
    "python experiments/study_cola.py": LONG,
}
# What makes a training line small, by its config: what it downloads is made here.
SYNTHETIC = ("--config.data.source=synthetic", "--config.data.num_examples=96")
GLUE = ("--config.data.source=glue_dir", "--config.data.dir=GLUE")
SMALL = (
    "--config.model.path=random:tiny",
    "--config.hyper.widths=(16,)",
    "--config.num_seeds=1",
    "--config.data.max_length=32",
    "--config.optim.num_epochs=1",
    "--config.optim.batch_size=16",
    "--config.optim.accumulate=1",
    "--config.uncertainty.samples=2",
)
DATA = {"demo": SYNTHETIC, "common": SYNTHETIC, "smoke": SYNTHETIC[1:]}
DATA |= {"glue": GLUE, "paper": GLUE, "files": (), "tasks": ()}
ONE_ROW = ("--rows=lora", "--tasks=cola", "--seeds=1", "--budget=0", "--data=GLUE")
ONE_ROW += ("--backbone=random:tiny",)
# Flags of scripts at smoke size; those of `hypelora train` too where they take them.
SCRIPTS = {
    "experiments/launch/local.py": (*SYNTHETIC[1:], *SMALL),
    "experiments/pictures.py": (),
    "experiments/reproduce.py": (*ONE_ROW, *SMALL),
    "experiments/train.py": (*SYNTHETIC[1:], *SMALL),
    "experiments/uncertainty.py": (
        "--config=smoke",
        "--samples=2",
        *SYNTHETIC[1:],
        *SMALL[1:-1],
    ),
    "notebooks/build.py": (),
}


class Stdin(io.TextIOWrapper):
    """What a pipe gives a command."""

    def __init__(self, text: str):
        super().__init__(io.BytesIO(text.encode()), "utf-8")


def values(line: documented.Line, name: str) -> list[str]:
    """What a line gives for the flag --name."""
    return [arg.split("=", 1)[1] for arg in line.argv if arg.startswith(f"--{name}=")]


def test_the_table_of_lines_not_run_is_of_use():
    assert set(NOT_RUN.values()) <= {TPU, CLOUD, DOWNLOAD, LONG, EXTRA}
    for start in NOT_RUN:
        assert any(line.text.startswith(start) for line in LINES), f"no line {start}"
    for line in LINES:
        if line.word == "python" and not not_run(line):
            assert line.argv[1] in SCRIPTS, f"{line.text}: how is it run small?"


def not_run(line: documented.Line) -> bool:
    return any(line.text.startswith(start) for start in NOT_RUN)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what the lines read: data, a finished run, its export."""
    folder = tmp_path_factory.mktemp("world")
    corpora.glue(folder / "GLUE")
    texts = (folder / "GLUE" / "SST-2" / "train.tsv").read_text().splitlines()[1:97]
    rows = [line.split("\t") for line in texts]
    names = ("negative", "positive")
    table = "".join(f"{text},{names[int(label)]}\n" for text, label in rows)
    for name in ("train.csv", "validation.csv"):
        (folder / name).write_text(f"text,label\n{table}")
    pair = '{{"claim": "{0}", "evidence": "{0}", "verdict": "{1}"}}\n'
    (folder / "pairs.jsonl").write_text("".join(pair.format(*row) for row in rows))
    vectors = np.random.default_rng(0).normal(size=(2, 4)).round(2)
    np.savez(folder / "domains.npz", ids=np.array(["film", "news"]), vectors=vectors)
    given = [
        {"text": text, "label": label, "vector": vectors[i % 2].tolist()}
        | {"domain": ("film", "news")[i % 2]}
        for i, (text, label) in enumerate(rows)
    ]
    table_of = "".join(json.dumps(row) + "\n" for row in given)
    (folder / "conditioned.jsonl").write_text(table_of)
    task_sets.write_example(folder)
    (folder / "runs" / "questions").mkdir(parents=True)
    opposite = flips.write(folder / "runs" / "questions")
    Path(opposite).rename(folder / "runs" / "questions" / "tasks.yaml")
    Path(adapter_sets.write(folder)).rename(folder / "adapters.yaml")
    few = [{"text": text, "label": ("no", "yes")[int(x)]} for text, x in rows[:12]]
    lines = "".join(json.dumps(row) + "\n" for row in few)
    (folder / "sarcastic.jsonl").write_text(lines)
    lines = "".join(f'{{"text": "{text}"}}\n' for text, _ in rows[:8])
    (folder / "in.jsonl").write_text(lines)
    (folder / "in.csv").write_text(f"text,label\n{table}")
    with contextlib.chdir(folder):
        run = ["--workdir=template/run"]
        config = ["--config=smoke:method=lora", *SYNTHETIC, *SMALL]
        assert cli.main(["train", *config, *run]) == 0
        assert cli.main(["export", *run, "--output=template/peft"]) == 0
        config = ["--config=tasks", "--config.tasks.file=tasks.yaml"]
        tasks = ["train", *config, *SMALL, "--workdir=template/tasks"]
        assert cli.main(tasks) == 0
        merged = ["--format=merged", "--output=template/classifier"]
        assert cli.main(["export", *run, *merged]) == 0
    _as_a_classifier(folder / "template" / "classifier")
    for name in ("labelled.csv", "new.csv"):
        shares = np.random.default_rng(0).random(60).round(3)
        lines = [f"{i % 2},{p},{1 - p:.3f}\n" for i, p in enumerate(shares)]
        (folder / name).write_text("".join(["label,prob_0,prob_1\n", *lines]))
    return folder


def _as_a_classifier(folder: Path) -> None:
    """A merged export as another program saves it, with the labels of train.csv."""
    (folder / "hypelora.json").unlink()
    fields = json.loads((folder / "config.json").read_text())
    fields["id2label"] = {"0": "negative", "1": "positive"}
    (folder / "config.json").write_text(json.dumps(fields))


def makes_a_run(line: documented.Line) -> bool:
    return line.word == "python" or line.argv[1] in ("train", "import")


def made_ready(line: documented.Line, world: Path) -> None:
    """Gives the line the folders it reads, and takes away those it makes."""
    for folder in values(line, "workdir"):
        path = world / folder
        if makes_a_run(line):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.exists():
            own = "tasks" if folder in ("runs/tasks", "runs/reader") else "run"
            shutil.copytree(world / "template" / own, path)
    for folder in (*values(line, "static"), *values(line, "train_static")):
        shutil.rmtree(world / folder, ignore_errors=True)
    for folder in values(line, "predictions"):
        if not (world / folder).exists():
            run = (world / folder).parents[2]
            shutil.copytree(world / "template" / "run", run, dirs_exist_ok=True)
    for folder in values(line, "adapter"):
        if not (world / folder).exists():
            shutil.copytree(world / "template" / "peft", world / folder)
    for folder in values(line, "model") if line.argv[1] == "import" else ():
        if not (world / folder).exists():
            shutil.copytree(world / "template" / "classifier", world / folder)
    for path in values(line, "output"):
        if (world / path).is_dir():
            shutil.rmtree(world / path)
    if "pictures.py" in line.text:
        for method in ("lora", "hyper_mlp", "head"):
            shutil.copytree(world / "template" / "run", world / "runs/demo" / method)


def placed(line: documented.Line) -> documented.Line:
    """The line with names for what it only calls FILE, DIR, HOST:PORT,COUNT,RANK."""
    new = makes_a_run(line)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    names = {
        "FILE": "template/run/eval/validation/predictions.npz",
        "DIR": "runs/new" if new else "template/run",
        "HOST:PORT,COUNT,RANK": f"localhost:{port},1,0",
    }
    places = "|".join(names)
    text = re.sub(rf"(?<==)({places})\b", lambda found: names[found[1]], line.text)
    return line._replace(text=text)


def small(line: documented.Line) -> list[str]:
    """The line's arguments at smoke size."""
    argv = line.argv[1:]
    if line.word == "python":
        return [str(ROOT / argv[0]), *argv[1:], *SCRIPTS[argv[0]]]
    argv = [re.sub(r"^--topology=.*", "--topology=cpu-2", a) for a in argv]
    if argv[0] == "report":
        argv.append("--replicas=20")
    for config in values(line, "config"):
        argv += [*DATA[config.partition(":")[0]], *SMALL]
    return argv


def in_process(argv: list[str], monkeypatch) -> None:
    """A script as `python` runs it, but with the programs compiled here."""
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.syspath_prepend(str(Path(argv[0]).parent))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code


def served(flags: list[str]) -> None:
    """The service of a line, on a free port, until it is asked to stop."""
    flags = [flag for flag in flags if not flag.startswith("--port=")]
    with serving.started(*flags) as (command, port):
        assert serving.call(port, "GET", "/healthz")[0] == 200
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 0


RUN = [line for line in LINES if not not_run(line) and line.word != "pytest"]


@pytest.mark.soak
@pytest.mark.parametrize("line", RUN, ids=lambda line: f"{line.page}: {line.text[:70]}")
def test_every_line_runs(line, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    if line.word == "make":  # its environment is the one that runs this
        own = [f"--old-file={sys.prefix}/.base", f"VENV={sys.prefix}"]
        subprocess.run(["make", "-C", ROOT, *own, *line.argv[1:]], check=True)
        return
    line = placed(line)
    made_ready(line, world)
    argv = small(line)
    if argv[0] == "serve":
        served(argv[1:])
        return
    if line.word == "python" and "--distributed" not in line.text:
        in_process(argv, monkeypatch)
        return
    if line.word == "python":
        done = process.python(*argv)
        out, err = done.communicate(timeout=600)
        assert done.returncode == 0, err[-2000:]
        return
    monkeypatch.setattr(sys, "stdin", Stdin(line.stdin or '{"text": "go"}\n'))
    assert cli.main(argv) == 0, capsys.readouterr().err[-2000:]
    if argv[0] == "predict":
        asked = values(line, "output")
        said = (world / asked[0]).read_text() if asked else capsys.readouterr().out
        assert "prob" in said
