"""Processes that a launcher starts find each other, and train as one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import process
import pytest
from sharding.test_processes import SHORT, same_run, whole

REPOSITORY = Path(__file__).parents[2]
JOIN = """
import jax
from hypelora_jax.sharding import processes
processes.initialize()
print("rank", jax.process_index(), "of", jax.process_count(), "on", jax.device_count())
"""
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "{rank}",
    "SLURM_LOCALID": "{rank}",
}
GKE = {
    "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1",
    "TPU_WORKER_ID": "{rank}",
    "JAX_FORCE_TPU_INIT": "1",  # there are no chips here to tell JAX where it is
    # else JAX asks the metadata server of Google's machines for them
    "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
    "MEGASCALE_NUM_SLICES": "1",
    "MEGASCALE_SLICE_ID": "0",
}


@pytest.mark.soak
@pytest.mark.parametrize("variables", [SLURM, GKE], ids=["Slurm", "GKE"])
def test_a_process_finds_its_rank_and_peers_by_the_environment(variables):
    port = {"JAX_COORDINATOR_PORT": str(process.free_port())}
    two = []
    for rank in range(2):
        own = {name: text.format(rank=rank) for name, text in variables.items()}
        env = process.ENV | port | own | {"JAX_NUM_CPU_DEVICES": "2"}
        two.append(process.python("-c", JOIN, env=env))
    for rank, done in enumerate(process.end(two)):
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"rank {rank} of 2 on 4" in done.stdout


def trained(*command, tmp_path, **variables):
    """The run a launcher's command has made in a folder whose name has a space."""
    workdir = tmp_path / "a run"
    env = process.ENV | variables
    flags = [*SHORT, f"--workdir={workdir}"]
    done = subprocess.run(
        [*command, *flags],
        env=env,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir


@pytest.mark.soak
def test_the_local_launcher_trains(tmp_path):
    launcher = "experiments/launch/local.py"
    command = (sys.executable, launcher, "--processes=2", "--devices=2", "--")
    same_run(trained(*command, tmp_path=tmp_path), whole(*SHORT))


@pytest.mark.soak
def test_mpirun_trains(tmp_path):
    assert shutil.which("mpirun"), "expected Open MPI: apt-get install -y openmpi-bin"
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ("mpirun", "-n", "2", "--oversubscribe", sys.executable)
    variables = {"JAX_NUM_CPU_DEVICES": "2"} | (root if os.getuid() == 0 else {})
    workdir = trained(*command, "experiments/train.py", tmp_path=tmp_path, **variables)
    same_run(workdir, whole(*SHORT))
