"""Weights & Biases and Trackio themselves, without a network: a run and its resumption.

Each process starts in an empty folder, and the files of both packages are read back.
"""

import json
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import process
import pytest
from wandb.proto import wandb_internal_pb2

from hypelora_jax.run.metric_writers import PROJECT
from hypelora_jax.run.paths import Run

FLAGS = (
    *process.TINY,
    "--config.method=lora",
    "--config.log.writers=('tensorboard', 'wandb', 'trackio')",
)
BLOCK = 1 << 15  # bytes; a .wandb file is a log of LevelDB


@pytest.fixture
def launch(tmp_path):
    """Start `hypelora train` in its own process group, as a terminal does."""
    (tmp_path / "here").mkdir()
    env = process.ENV | {
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    place = {"cwd": tmp_path / "here", "env": env, "start_new_session": True}
    argv = ("train", *FLAGS, f"--workdir={tmp_path / 'run'}")
    return lambda: process.start(*argv, **place)


def of_wandb(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records of a .wandb file: 7 bytes, then blocks of whole or cut records."""
    data, at, part, out = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (room := BLOCK - at % BLOCK) < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            out.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return out


def history(records) -> list[dict]:
    return [
        {item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]


def test_a_run_that_goes_on_is_one_run_for_both(launch, tmp_path):
    run = Run.open(tmp_path / "run")
    first = launch()
    process.wait_for_step(first, tmp_path / "run", 3)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C reaches what wandb has started too
    out, err = first.communicate(timeout=300)
    assert first.returncode == 130 and out == "", err[-2000:]
    again = launch()
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0 and out == "", err[-2000:]
    assert os.listdir(tmp_path / "here") == [], "nothing in the user's folder"

    rows = process.rows(tmp_path / "run")
    wanted = {row["step"]: row["loss"] for row in rows if row["split"] == "train"}
    final = json.loads(run.summary_file.read_text())["metrics"]["test"]["nll"]
    own = json.loads(run.identity_file.read_text())["id"]

    logs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [log.name for log in logs] == [f"run-{own}.wandb"] * 2
    parts = [of_wandb(log) for log in logs]
    (begun,) = (r.run for r in parts[0] if r.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, begun.run_id, begun.display_name) == (PROJECT, own, "run")
    assert config["method"] == "lora" and config["optim"]["batch_size"] == 16
    seen = [row for part in parts for row in history(part)]
    losses = {row["step"]: row["train/loss"] for row in seen if "train/loss" in row}
    assert losses == pytest.approx(wanted)
    assert any("validation/nll" in row for row in seen)
    ends = {
        (item.nested_key or [item.key])[0]: item.value_json
        for record in parts[1]
        for item in record.summary.update
    }
    assert json.loads(ends["final/test/nll"]) == pytest.approx(final)
    codes = [r.exit.exit_code for p in parts for r in p if r.HasField("exit")]
    assert codes == [1, 0], "stopped, then finished"

    with sqlite3.connect(tmp_path / "trackio" / f"{PROJECT}.db") as base:
        (row,) = base.execute("select run_name, config from configs").fetchall()
        told = base.execute("select run_name, step, metrics from metrics").fetchall()
    assert row[0] == f"run-{own}" and {name for name, *_ in told} == {f"run-{own}"}
    assert json.loads(row[1])["method"] == "lora"
    told = [(step, json.loads(metrics)) for _, step, metrics in told]
    losses = {step: m["train/loss"] for step, m in told if "train/loss" in m}
    assert losses == pytest.approx(wanted)
    assert [m["final/test/nll"] for _, m in told if "final/test/nll" in m] == [final]
    assert max(Counter(s for s, m in told if "train/loss" in m).values()) <= 2
