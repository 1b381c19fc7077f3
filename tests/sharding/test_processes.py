"""Real processes: joining, one folder, and runs that equal those of one process."""

import atexit
import functools
import json
import re
import signal
import tempfile
import time
from pathlib import Path

import conditioned
import numpy as np
import process
import pytest
from etils import epath

from hypelora_jax import cli
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.run import metric_log, paths
from hypelora_jax.run.metric_writers import Writers
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes
from hypelora_jax.train.checkpoint import manifest, selection

SCRIPT = "tests/sharding/several.py"
# A run with leaves large enough that each process writes parts of them.
LARGE = (*process.TINY, "--config.hyper.widths=(256,512)")
# 3 steps and their evaluation; what takes long is to compile them.
SHORT = (
    *LARGE,
    "--config.data.num_examples=48",
    "--config.optim.num_epochs=1",
    "--config.ckpt.every_steps=0",
)


def losses(workdir):
    """By split and step: every loss and NLL of metrics.jsonl."""
    return {
        (row["split"], row["step"]): row.get("loss", row.get("nll"))
        for row in process.rows(workdir)
    }


def same_losses(workdir, whole):
    one, other = losses(whole), losses(workdir)
    assert other.keys() == one.keys()
    for at, value in one.items():
        assert other[at] == pytest.approx(value, abs=1e-5), at


def one_writer(workdir):
    """Each row once, and nothing left over."""
    rows = [(row["split"], row["step"]) for row in process.rows(workdir)]
    assert len(rows) == len(set(rows))
    assert not list(workdir.glob(".token*")) and not list(workdir.glob(".write*"))


def sealed_by_all(folder):
    """Every checkpoint is whole, and its sums are over the parts of both processes."""
    steps = selection.complete(folder)
    assert steps and steps == selection.steps(folder)
    for step in steps:
        assert selection.fault(folder, step) is None
        sums = manifest.unseal((folder / str(step) / paths.MANIFEST).read_bytes())
        for rank in (0, 1):
            assert any(f"ocdbt.process_{rank}/" in name for name in sums), sums.keys()


@functools.cache
def whole(*flags):
    """The run of one process: here, on 8 devices."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    workdir = Path(folder.name) / "run"
    assert cli.main(["train", *flags, f"--workdir={workdir}"]) == 0
    return workdir


def same_run(workdir, one):
    """Losses, logits and metrics of a finished run; this process restores it."""
    same_losses(workdir, one)
    one_writer(workdir)
    for split in ("calibration", "validation", "test"):
        with np.load(workdir / f"eval/{split}/predictions.npz") as a:
            with np.load(one / f"eval/{split}/predictions.npz") as b:
                np.testing.assert_array_equal(a["ids"], b["ids"])
                np.testing.assert_allclose(a["logits"], b["logits"], atol=1e-5)
    assert (workdir / "report/report.html").exists()
    held = json.loads((workdir / "eval/validation/metrics.json").read_text())
    result = evaluation.evaluate(str(workdir), "validation")
    assert result["n"] == held["n"]
    assert result["nll"] == pytest.approx(held["nll"], abs=1e-6)


def test_two_processes_are_one_run(tmp_path):
    """Refused together, then trained together; another number of devices evaluates."""
    for name in ("0", "1", "run"):
        (tmp_path / name).mkdir()
    writers = "--config.log.writers=shown"
    workdir, flags = tmp_path / "run", (*SHORT, "--config.mesh.fsdp=2", writers)
    args = (f"{tmp_path}/{{rank}}", *flags, f"--workdir={workdir}")
    two = process.start_several(2, *args, script=SCRIPT)
    one = whole(*SHORT)
    ended = process.end(two)
    for done in ended:
        assert done.returncode == 0, done.stderr[-2000:]
        first, second, third = re.findall("^refused: (.*)$", done.stdout, re.MULTILINE)
        assert first.startswith("process 1 cannot read what process 0 wrote"), first
        assert "expected one folder that all processes share" in first
        assert "missing" in second, "what one is refused, all are"
        assert third.startswith("glue/rte is not in"), third
        assert "several processes download nothing: run `hypelora prepare`" in third
    assert not list(tmp_path.glob("*/.token*"))
    said = [done.stderr.count("writer opened") for done in ended]
    assert said == [1, 0], "only process 0 writes"
    sealed_by_all(epath.Path(workdir) / "checkpoints")
    record = json.loads((workdir / "config.json").read_text())
    assert record["num_processes"] == 2 and record["mesh"]["fsdp"] == 2
    same_run(workdir, one)


@pytest.mark.soak
@pytest.mark.fault(
    "SIGTERM to one process of several", "all save the same step and exit 75"
)
def test_two_processes_stop_together_and_one_goes_on(tmp_path, capsys):
    """Two processes with cut weights, preempted; then one process, its own mesh."""
    workdir, one = tmp_path / "run", whole(*LARGE)
    args = (*LARGE, f"--workdir={workdir}")
    two = process.start_several(2, *args, "--config.mesh.fsdp=2")
    try:
        process.wait_for_step(two[0], workdir, 3)
        assert cli.main(["train", *args]) == 2
        assert f"is in use by process {two[0].pid} on" in capsys.readouterr().err
        two[1].send_signal(signal.SIGTERM)  # process 0 hears of it from process 1
    finally:
        ended = process.end(two)
    for done in ended:
        assert done.returncode == 75, done.stderr[-2000:]
        assert "preempted: saved at step" in done.stderr.strip().splitlines()[-1]
    sealed_by_all(epath.Path(workdir) / "checkpoints")
    assert len(process.rows(workdir)) >= 3, "written by process 0, not by process 1"
    assert cli.main(["train", *args]) == 0
    same_run(workdir, one)


@pytest.mark.soak
@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_bring_the_conditions_of_their_rows(shared, tmp_path):
    """Each row its own vector, and vectors of a file that rows share."""
    data = conditioned.write(tmp_path, "vector")
    given = (*conditioned.GIVEN, "--config.condition.standardise=true")
    if shared:
        data, given = conditioned.with_ids(tmp_path), ()
    short = ("--config.data.max_length=16", "--config.optim.num_epochs=1")
    flags = (*data, *given, *short, "--config.log.every_steps=1")
    workdir = tmp_path / "run"
    two = process.start_several(
        2, *flags, "--config.mesh.fsdp=2", f"--workdir={workdir}"
    )
    for done in process.end(two):
        assert done.returncode == 0, done.stderr[-2000:]
    same_losses(workdir, whole(*flags))


@pytest.mark.soak
def test_four_processes_are_one_run(tmp_path):
    """Kernels are cut over all four, along two axes."""
    workdir = tmp_path / "run"
    flags = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.model=2")
    args = (*process.TINY, *flags, f"--workdir={workdir}")
    for done in process.end(process.start_several(4, *args, devices=1)):
        assert done.returncode == 0, done.stderr[-2000:]
    same_run(workdir, whole(*process.TINY))


@pytest.mark.soak
def test_one_process_begins_and_two_go_on(tmp_path):
    """A checkpoint of one device, restored by two processes of two devices."""
    workdir = tmp_path / "run"
    args = (*process.TINY, f"--workdir={workdir}")
    first = process.start("train", *args)
    try:
        process.wait_for_step(first, workdir, 3)
        first.send_signal(signal.SIGTERM)
    finally:
        (done,) = process.end([first])
    assert done.returncode == 75, done.stderr[-2000:]
    two = process.start_several(2, *args, "--config.mesh.fsdp=2")
    for done in process.end(two):
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
    same_run(workdir, whole(*process.TINY))


@pytest.mark.soak
@pytest.mark.fault(
    "one of four training processes killed",
    "the others exit in 120 s; a restart goes on to the same losses",
)
def test_one_of_four_is_killed_and_a_restart_goes_on(tmp_path):
    workdir = tmp_path / "run"
    args = (*process.TINY, f"--workdir={workdir}")
    four = process.start_several(4, *args, devices=1)
    try:
        process.wait_for_step(four[0], workdir, 5)  # the first save is complete
        four[2].kill()
        limit = time.monotonic() + 120
        for peer in four:
            peer.wait(timeout=limit - time.monotonic())
    finally:
        ended = process.end(four)
    assert all(done.returncode != 0 for done in ended)
    assert selection.complete(epath.Path(workdir) / "checkpoints"), "to go on from"
    for done in process.end(process.start_several(4, *args, devices=1)):
        assert done.returncode == 0, done.stderr[-2000:]
    same_run(workdir, whole(*process.TINY))


@pytest.mark.soak
def test_two_folders_stop_a_run_with_one_line(tmp_path):
    both = process.start_several(2, *process.TINY, f"--workdir={tmp_path}/run_{{rank}}")
    for done in process.end(both):
        assert done.returncode == 2 and "Traceback" not in done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("hypelora: error: process 1 cannot read"), line


TPU = {"TPU_WORKER_HOSTNAMES": "a,b"}


@pytest.mark.parametrize(
    "environ, found",
    [
        ({}, ""),
        ({"SLURM_NTASKS": "2"}, "Slurm"),
        ({"SLURM_NTASKS": "1"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "multislice"),
        (TPU, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "TPU pod"),
    ],
)
def test_the_environment_says_who_started_it(environ, found, tmp_path):
    assert processes.launcher(environ, dev=str(tmp_path)) == found


def test_chips_of_a_tpu_vm_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
    (tmp_path / "accel0").touch()
    assert processes.launcher({}, dev=str(tmp_path)) == "TPU VM"
    assert processes.launcher({"JAX_PLATFORMS": "cpu"}, dev=str(tmp_path)) == ""


@pytest.mark.parametrize(
    "text", ["yes", "host:1,2", "host:1,2,2", "host,2,0", "h:1,a,b"]
)
def test_a_wrong_way_to_the_others_is_refused(text):
    with pytest.raises(UserError, match="expected auto, off or HOST:PORT,COUNT,RANK"):
        processes.initialize(text)


def test_one_process_agrees_with_itself(tmp_path):
    assert processes.is_main() and processes.agreed(15, False) == 15
    assert processes.together(lambda: 3) == 3
    processes.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_append_gets_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "appends", property(lambda self: False))
    path = tmp_path / "metrics.jsonl"
    run = Run(epath.Path(tmp_path))
    with (
        Writers(("tensorboard",), run) as writers,
        metric_log.MetricLog(run, 0, 2, show=False, writers=writers) as rows,
    ):
        rows.write({"step": 1, "split": "train"})
        assert process.rows(tmp_path) == []
        rows.flush()
        assert process.rows(tmp_path) == [{"step": 1, "split": "train"}]
        rows.write({"step": 2, "split": "train"})
    assert len(process.rows(tmp_path)) == 2 and list(tmp_path.iterdir()) == [path]


def test_object_stores_cannot_append(tmp_path):
    assert Run.open(tmp_path).appends and not Run.open("gs://bucket/run").appends
