"""Launchers with gcloud, kubectl, sbatch and srun replaced by a recorder on PATH."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# what shells like to break: spaces, quotes, globs, variables, options of their own
FLAGS = [
    "--config=my configs/it's $HOME.py:task=cola",
    '--workdir=gs://bucket/two words/"x" * `y`',
    "--config.data.text=a;b",
]
RECORDER = """#!/bin/sh
{ printf '%s\\0' "$(basename "$0")" "$@"; printf '\\n'; } >> "$RECORD"
[ -t 0 ] || [ "$(basename "$0")" != kubectl ] || cat > "$RECORD.stdin"
exit "${RECORDER_EXIT:-0}"
"""


def record(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(RECORDER)
    (folder / name).chmod(0o755)


@pytest.fixture
def launch(tmp_path):
    """Runs a command with recorders; (exit code, stderr, recorded calls)."""
    for name in ("gcloud", "kubectl", "sbatch", "srun", "scontrol"):
        record(tmp_path / "bin", name)

    def run(*command, **variables):
        log = tmp_path / "record"
        log.unlink(missing_ok=True)
        unset = ("PROJECT", "ZONE", "TPU", "SLICE", "SLURM_JOB_ID", "SBATCH_OPTIONS")
        env = {k: v for k, v in os.environ.items() if k not in unset}
        env |= {"PATH": f"{tmp_path / 'bin'}:{env['PATH']}", "RECORD": str(log)}
        done = subprocess.run(
            [str(c) for c in command],
            env=env | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        lines = log.read_text().split("\0\n")[:-1] if log.exists() else []
        return done.returncode, done.stderr, [line.split("\0") for line in lines]

    return run


PLACE = {"PROJECT": "p", "ZONE": "z-1", "TPU": "pod"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shell_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.soak
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_has_nothing_to_say(path):
    """Needs Debian's shellcheck: apt-get install shellcheck."""
    subprocess.run(["shellcheck", path], check=True)


def test_a_pod_gets_the_flags_unharmed(launch, tmp_path):
    code, _, calls = launch(LAUNCH / "tpu_vm.sh", "train", *FLAGS, **PLACE)
    assert code == 0
    (call,) = calls
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert call[6:9] == ["--zone=z-1", "--project=p", "--worker=all"]
    (command,) = [a.removeprefix("--command=") for a in call if "--command=" in a]
    # the shell of each host reads the command back: what does it start?
    record(tmp_path / "hypelora_jax" / ".venv" / "bin", "python")
    log = tmp_path / "host"
    env = {**os.environ, "RECORD": str(log)}
    subprocess.run(["bash", "-c", command], env=env, cwd=tmp_path, check=True)
    assert log.read_text().split("\0")[:-1] == [
        "python",
        "experiments/train.py",
        *FLAGS,
    ]


def test_a_pod_is_made_filled_and_deleted(launch):
    script = LAUNCH / "tpu_vm.sh"
    _, _, (made,) = launch(script, "create", **PLACE, SLICE="v5litepod-16", SPOT="1")
    assert "--accelerator-type=v5litepod-16" in made and "--spot" in made
    _, _, (copied, installed) = launch(script, "install", **PLACE)
    assert copied[4] == "scp" and copied[6] == "pod:hypelora_jax.tar.gz"
    assert "--worker=all" in copied and ".[tpu]" in installed[-1]
    _, _, (prepared,) = launch(script, "prepare", "--config=glue", **PLACE)
    assert prepared[-1].endswith("hypelora prepare --config=glue ")
    _, _, (deleted,) = launch(script, "delete", **PLACE)
    assert deleted[4] == "delete" and "--quiet" in deleted


@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "TPU"])
def test_without_project_zone_or_name_a_pod_is_one_line(launch, missing):
    variables = {k: v for k, v in PLACE.items() if k != missing}
    code, err, calls = launch(LAUNCH / "tpu_vm.sh", "train", *FLAGS, **variables)
    assert (code, calls, err.count("\n")) == (2, [], 1)
    assert f"{missing} is not set; export {missing}=" in err


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_vm.sh", [], "no command; expected create"),
        ("tpu_vm.sh", ["fly"], "no command fly; expected create"),
        ("tpu_vm.sh", ["create"], "SLICE is not set"),
        ("tpu_vm.sh", ["train", "--config=smoke"], "train needs --workdir=...; add it"),
        ("tpu_vm.sh", ["train", "--workdir=x"], "train needs --config=...; add it"),
        ("slurm.sh", ["--config=smoke"], "--config=... or --workdir=... is missing"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(launch, script, arguments, message):
    code, err, calls = launch(LAUNCH / script, *arguments, **PLACE)
    assert (code, calls, err.count("\n")) == (2, [], 1)
    assert message in err


def test_slurm_gets_the_flags_unharmed(launch):
    script = LAUNCH / "slurm.sh"
    options = {"NODES": "4", "SBATCH_OPTIONS": "--partition=a100 --gpus-per-task=1"}
    code, _, (call,) = launch(script, *FLAGS, **options)
    assert code == 0
    assert call[:3] == ["sbatch", "--nodes=4", "--ntasks-per-node=1"]
    assert call[4:6] == ["--partition=a100", "--gpus-per-task=1"]
    assert call[6:] == [str(script), *FLAGS]
    job = {"SLURM_JOB_ID": "7", "PYTHON": "py"}  # the same file, inside the job
    code, _, (call,) = launch(script, *FLAGS, **job)
    wanted = ["srun", "--kill-on-bad-exit=1", "py", "experiments/train.py", *FLAGS]
    assert code == 0 and call == wanted


def test_slurm_puts_a_preempted_job_back_and_no_other(launch):
    script, job = LAUNCH / "slurm.sh", {"SLURM_JOB_ID": "7"}
    code, _, calls = launch(script, *FLAGS, **job, RECORDER_EXIT="75")
    assert calls[-1] == ["scontrol", "requeue", "7"]
    code, _, calls = launch(script, *FLAGS, **job, RECORDER_EXIT="2")
    assert code == 2 and [c[0] for c in calls] == ["srun"]


GKE = [sys.executable, LAUNCH / "gke.py", "--image=reg/hypelora:1"]


def test_the_jobset_names_image_command_topology_and_grace_time(launch, tmp_path):
    code, _, (call,) = launch(*GKE, "--topology=v5e:4x4", "--grace=90", "--", *FLAGS)
    assert code == 0 and call == ["kubectl", "apply", "-f", "-"]
    jobset = yaml.safe_load((tmp_path / "record.stdin").read_text())
    assert jobset["kind"] == "JobSet"
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4  # hosts of four chips
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "reg/hypelora:1"
    assert container["command"] == ["python", "experiments/train.py"]
    assert container["args"] == FLAGS
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--topology=v5e", "--", *FLAGS],
            "expected one of v5e, v5p, v6e with a shape",
        ),
        (
            ["--topology=v5e:4x4", "--name=A b", "--", *FLAGS],
            "expected lower-case letters",
        ),
        (["--topology=v5e:4x4", "--", "--config=smoke"], "--workdir is missing"),
    ],
)
def test_a_wrong_jobset_is_one_line(launch, arguments, message):
    code, err, calls = launch(*GKE, *arguments)
    assert code != 0 and calls == [] and err.count("\n") == 1
    assert message in err


CHILD = """import json, os, pathlib, signal, sys, time
rank = sys.argv[-1].split(",")[-1]
here = pathlib.Path(__file__).parent
devices = os.environ.get("JAX_NUM_CPU_DEVICES")
(here / f"{rank}.json").write_text(json.dumps([sys.argv[1:], devices]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
time.sleep(float(os.environ["SLEEP_" + rank]))
sys.exit(int(os.environ.get("EXIT_" + rank, "0")))
"""


@pytest.fixture
def local(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("local", LAUNCH / "local.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "train.py").write_text(CHILD)
    monkeypatch.setattr(module, "TRAIN", tmp_path / "train.py")
    return module


def test_local_processes_get_the_flags_and_their_ranks(local, tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEP_0", "0")
    monkeypatch.setenv("SLEEP_1", "0")
    assert local.wait(local.start(2, 3, FLAGS), 10) == 0
    for rank in range(2):
        got, devices = json.loads((tmp_path / f"{rank}.json").read_text())
        assert got[:-1] == FLAGS and devices == "3"
        host, count, own = got[-1].removeprefix("--distributed=").split(",")
        assert host.startswith("127.0.0.1:") and (count, own) == ("2", str(rank))


def test_when_one_local_process_fails_the_rest_are_stopped(local, monkeypatch):
    monkeypatch.setenv("SLEEP_0", "60")
    monkeypatch.setenv("SLEEP_1", "0")
    monkeypatch.setenv("EXIT_1", "3")
    processes = local.start(2, 0, FLAGS)
    start = time.monotonic()
    assert local.wait(processes, 20) == 3
    assert time.monotonic() - start < 20
    assert [p.returncode for p in processes][1] == 3


def test_a_signal_that_kills_a_local_process_is_reported_as_a_shell_does(
    local, monkeypatch
):
    monkeypatch.setenv("SLEEP_0", "60")
    processes = local.start(1, 0, FLAGS)
    processes[0].send_signal(signal.SIGKILL)
    assert local.wait(processes, 10) == 128 + signal.SIGKILL
