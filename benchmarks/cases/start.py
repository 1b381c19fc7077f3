"""Start-up: from the command to the first step, a second start, and `--help`.

The rival is an older version in a checkout of its own, with its own environment in
.venv. Each command is started again in every round, and each version has its own cache.
The first step has been done when the first line of metrics.jsonl has been written.
"""

import functools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import processes, timing
from benchmarks.case import Case, Options
from benchmarks.rows import Row, of_counts, of_times

LIMIT = 600  # seconds for a first step
TRAIN = (
    *("train", "--config=smoke:method=lora", "--config.model.path=minilm"),
    *("--config.log.every_steps=1", "--config.data.max_length=64"),
)
COMPILED = re.compile(r"Finished XLA compilation of .* in ([\d.e+-]+) sec")


class Version(NamedTuple):
    """A checkout, and the Python of its environment."""

    root: Path
    python: str

    def command(self, *arguments: str) -> list[str]:
        """A command of this version."""
        return [self.python, "-m", "hypelora_jax.cli", *arguments]

    def env(self, folder: str) -> dict[str, str]:
        """Its variables: its own source, and a cache in `folder`."""
        return processes.environment(self.root, HYPELORA_CACHE=folder)


def versions(baseline: str) -> tuple[Version, Version]:
    """This checkout, and the older one."""
    root = Path(baseline).absolute()
    python = root / ".venv" / "bin" / "python"
    other = str(python) if python.exists() else sys.executable
    return Version(processes.ROOT, sys.executable), Version(root, other)


def to_first_step(version: Version, cache: str) -> str:
    """Train until the first step is done, and stop; return what was logged."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+") as log:
        workdir = Path(folder) / "run"
        command = version.command(*TRAIN, f"--workdir={workdir}")
        env = version.env(cache) | {"JAX_LOG_COMPILES": "1"}
        child = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        limit, lines = time.monotonic() + LIMIT, workdir / "metrics.jsonl"
        while not (lines.exists() and lines.stat().st_size):
            if child.poll() is not None or time.monotonic() > limit:
                child.kill()
                log.seek(0)
                raise RuntimeError(f"no first step: {log.read()[-2000:]}")
            time.sleep(0.01)
        child.kill()
        child.wait()
        log.seek(0)
        return log.read()


def first_step(options: Options) -> Iterator[Row]:
    """From the command to the first step with a warm cache."""
    ours, theirs = versions(options.baseline)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        own: Callable[[], object] = functools.partial(to_first_step, ours, a)
        rival: Callable[[], object] = functools.partial(to_first_step, theirs, b)
        rivals = {theirs.root.name: rival}
        found = timing.compare(own, rivals, options.seconds)
    yield _of_commands("start/first_step", "baseline", found)


def second(options: Options) -> Iterator[Row]:
    """Seconds of compilation of a second start, and of the first."""
    del options
    version = Version(processes.ROOT, sys.executable)
    with tempfile.TemporaryDirectory() as cache:
        first, again = (_compiling(to_first_step(version, cache)) for _ in range(2))
    yield of_counts("start/second", "first start", again, first, "s compiling")


def _compiling(log: str) -> float:
    return sum(float(seconds) for seconds in COMPILED.findall(log))


def help_text(options: Options) -> Iterator[Row]:
    """`hypelora --help`."""
    ours, theirs = versions(options.baseline)

    def run(version: Version) -> None:
        processes.run(version.command("--help"), processes.environment(version.root))

    rivals = {"baseline": functools.partial(run, theirs)}
    found = timing.compare(functools.partial(run, ours), rivals, options.seconds)
    yield _of_commands("start/help", "baseline", found)


def _of_commands(name: str, rival: str, found: timing.Compared) -> Row:
    row = of_times(name, rival, found)
    # the CPU time of this process says nothing of commands
    return row._replace(notes={n: x for n, x in row.notes.items() if n != "cpu_ratio"})


CASES = {
    "start/first_step": Case(first_step, "baseline"),
    "start/second": Case(second),
    "start/help": Case(help_text, "baseline"),
}
