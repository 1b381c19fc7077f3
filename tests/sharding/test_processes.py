"""Real processes: joining, one folder, and runs that equal those of one process."""

import json
import signal

import numpy as np
import process
import pytest
from etils import epath

from hypelora_jax import cli, evaluate
from hypelora_jax.sharding import processes
from hypelora_jax.train import journal, manifest, stored
from hypelora_jax.types import UserError

SCRIPT = "tests/sharding/shared.py"


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
    steps = stored.complete(folder)
    assert steps and steps == stored.steps(folder)
    for step in steps:
        assert stored.fault(folder, step) is None
        sums = manifest.unseal((folder / str(step) / manifest.NAME).read_bytes())
        for rank in (0, 1):
            assert any(f"ocdbt.process_{rank}/" in name for name in sums), sums.keys()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of one process: here, on 8 devices."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["train", *process.TINY, f"--workdir={workdir}"]) == 0
    return workdir


def test_two_processes_stop_together_and_one_goes_on(whole, tmp_path, capsys):
    """Two processes with cut weights, preempted; then one process, its own mesh."""
    workdir = tmp_path / "run"
    args = (*process.TINY, f"--workdir={workdir}")
    two = process.start_several(2, *args, "--config.mesh.fsdp=2")
    process.wait_for_step(two[0], workdir, 3)
    assert cli.main(["train", *args]) == 2
    assert f"is in use by process {two[0].pid} on" in capsys.readouterr().err
    two[1].send_signal(signal.SIGTERM)  # process 0 hears of it from process 1
    for code, err in process.end(two):
        assert code == 75, err[-2000:]
        assert "preempted: saved at step" in err.strip().splitlines()[-1]
    sealed_by_all(epath.Path(workdir) / "checkpoints")
    rows = len(process.rows(workdir))
    assert rows >= 3, "written by process 0, not by process 1"
    record = json.loads((workdir / "config.json").read_text())
    assert record["num_processes"] == 2 and record["mesh"]["fsdp"] == 2
    assert cli.main(["train", *args]) == 0
    same_losses(workdir, whole)
    one_writer(workdir)
    result = evaluate.evaluate(str(workdir), "validation")
    wanted = json.loads((whole / "eval/validation/metrics.json").read_text())
    assert result["n"] == wanted["n"]
    assert result["nll"] == pytest.approx(wanted["nll"], abs=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize(
    "count, mesh", [(2, (2, 2, 1)), (4, (-1, 1, 2)), (4, (1, 4, 2))]
)
def test_several_processes_equal_one(whole, tmp_path, count, mesh):
    workdir = tmp_path / "run"
    axes = zip(("data", "fsdp", "model"), mesh, strict=True)
    flags = [f"--config.mesh.{name}={size}" for name, size in axes]
    several = process.start_several(
        count, *process.TINY, *flags, f"--workdir={workdir}"
    )
    for code, err in process.end(several):
        assert code == 0, err[-2000:]
    same_losses(workdir, whole)
    one_writer(workdir)
    for split in ("calibration", "validation", "test"):
        with np.load(workdir / f"eval/{split}/predictions.npz") as a:
            with np.load(whole / f"eval/{split}/predictions.npz") as b:
                np.testing.assert_array_equal(a["ids"], b["ids"])
                np.testing.assert_allclose(a["logits"], b["logits"], atol=1e-5)
    assert (workdir / "report/report.html").exists()
    result = evaluate.evaluate(str(workdir), "validation")
    held = json.loads((workdir / "eval/validation/metrics.json").read_text())
    assert result["nll"] == pytest.approx(held["nll"], abs=1e-6)


def test_a_folder_that_is_not_shared_stops_all(tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    both = process.start_several(2, f"{tmp_path}/{{rank}}", script=SCRIPT)
    for code, err in process.end(both):
        assert code == 1
        line = err.strip().splitlines()[-1]
        assert line.startswith("process 1 cannot read what process 0 wrote"), err
        assert "wanted one folder that all processes share" in line
    assert not list(tmp_path.glob("*/.token*"))


@pytest.mark.soak
def test_what_one_process_is_refused_all_are(tmp_path):
    """Rank 1 cannot read its file; rank 0, which could, must not go on alone."""
    both = process.start_several(2, f"{tmp_path}/refused", script=SCRIPT)
    for code, err in process.end(both):
        assert code == 1 and "refused" in err.strip().splitlines()[-1]


@pytest.mark.soak
def test_two_folders_stop_a_run_with_one_line(tmp_path):
    both = process.start_several(2, *process.TINY, f"--workdir={tmp_path}/run_{{rank}}")
    for code, err in process.end(both):
        assert code == 2 and "Traceback" not in err
        line = err.strip().splitlines()[-1]
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
    with pytest.raises(UserError, match="wanted auto, off or HOST:PORT,COUNT,RANK"):
        processes.initialize(text)


def test_one_process_agrees_with_itself(tmp_path):
    assert processes.is_main() and processes.agreed(15, False) == 15
    assert processes.together(lambda: 3) == 3
    processes.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_append_gets_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "appends", lambda workdir: False)
    path = tmp_path / "metrics.jsonl"
    with journal.Journal(tmp_path, 0, 2, show=False) as rows:
        rows.write({"step": 1, "split": "train"})
        assert process.rows(tmp_path) == []
        rows.flush()
        assert process.rows(tmp_path) == [{"step": 1, "split": "train"}]
        rows.write({"step": 2, "split": "train"})
    assert len(process.rows(tmp_path)) == 2 and list(tmp_path.iterdir()) == [path]


def test_object_stores_cannot_append(tmp_path):
    assert journal.appends(tmp_path) and not journal.appends("gs://bucket/run")
