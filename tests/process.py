"""Real `hypelora` processes, for what only a process shows: kills, exits, signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hypelora_jax.run import predictions
from hypelora_jax.run.paths import Run

# A run of 12 steps that compiles little: one bucket, one hidden layer.
TINY = (
    "--config=smoke",
    "--config.data.num_examples=96",
    "--config.data.max_length=32",
    "--config.optim.num_epochs=2",
    "--config.optim.batch_size=16",
    "--config.ckpt.every_steps=2",
    "--config.log.every_steps=1",
)
ENV = {**os.environ, "JAX_PLATFORMS": "cpu"}  # and conftest's compilation cache


def start(*args: str, **kwargs) -> subprocess.Popen:
    return python("-m", "hypelora_jax.cli", *args, **kwargs)


def python(*args: str, **kwargs) -> subprocess.Popen:
    pipe = subprocess.PIPE
    kwargs = {"env": ENV} | kwargs
    return subprocess.Popen(
        [sys.executable, *args], stdout=pipe, stderr=pipe, text=True, **kwargs
    )


def run(*args: str, **kwargs) -> subprocess.CompletedProcess:
    process = start(*args, **kwargs)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def rows(workdir: Path) -> list[dict]:
    """Complete rows of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def board(workdir: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of each scalar in TensorBoard's files."""
    from tensorboardX.proto import event_pb2  # imports torch if that is there

    found = []
    for path in sorted((workdir / "tb").iterdir()):
        data = path.read_bytes()
        while data:  # length, its sum, an event, its sum
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            values = event.summary.value
            found += [(v.tag, event.step, v.simple_value) for v in values]
            data = data[16 + size :]
    return found


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns as soon as a step stands in metrics.jsonl."""
    limit = time.monotonic() + 900
    while not any(row["step"] >= step for row in rows(workdir)):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < limit, f"step {step} did not come"
        time.sleep(0.01)


def killed(workdir: Path, step: int, *args: str) -> None:
    """Starts a run and kills it as soon as a step stands in metrics.jsonl."""
    victim = start(*args, f"--workdir={workdir}")
    wait_for_step(victim, workdir, step)
    victim.kill()
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL, "it must not end before"


def survives_a_kill(
    folder: Path, step: int, splits: tuple[str, ...], *args: str
) -> tuple[Path, str]:
    """Checks that a run that is killed goes on to the logits of one that is not.

    Returns its folder, and what it wrote to stderr when it went on.
    """
    whole, broken = folder / "whole", folder / "broken"
    killed(broken, step, *args)
    for run_folder in (whole, broken):
        done = run(*args, f"--workdir={run_folder}")
        assert done.returncode == 0, done.stderr[-2000:]
    assert "going on from step" in done.stderr
    for split in splits:
        files = [Run.open(d).predictions_file(split) for d in (whole, broken)]
        a, b = (predictions.read(file).logits for file in files)
        assert a.tobytes() == b.tobytes(), split
    return broken, done.stderr


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_several(
    count: int, *args: str, devices: int = 2, script: str = "experiments/train.py"
) -> list[subprocess.Popen]:
    """One run as several processes of a few CPU devices each; `{rank}` is replaced."""
    path, port = Path(__file__).parents[1] / script, free_port()
    env = ENV | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return [
        python(
            str(path),
            f"--distributed=127.0.0.1:{port},{count},{rank}",
            *(a.replace("{rank}", str(rank)) for a in args),
            env=env,
        )
        for rank in range(count)
    ]


def end(several: list[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    """What became of each process; none outlives this."""
    try:
        said = [process.communicate(timeout=900) for process in several]
    finally:
        for process in several:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(several, said, strict=True)
    ]
