"""Commands in processes of their own: seconds of the clock and of all cores, output."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    """What a finished command used and wrote."""

    seconds: float
    cpu: float
    out: str
    err: str

    def told(self) -> dict[str, Any]:
        """The JSON object in the last line of the output."""
        return json.loads(self.out.splitlines()[-1])


def environment(source: Path = ROOT, **more: str) -> dict[str, str]:
    """The variables of a command that takes the package from a checkout."""
    paths = os.pathsep.join([str(source / "src"), str(source)])
    return {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **more}


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Done:
    """Run a command to its end.

    Raises:
      RuntimeError: it failed; the message has the end of what it wrote.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=err, env=env or environment(), cwd=ROOT
        )
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        done = Done(seconds, used.ru_utime + used.ru_stime, out.read(), err.read())
    if child.returncode:
        end = (done.err or done.out)[-2000:]
        raise RuntimeError(f"{' '.join(command)} failed: {end}")
    return done


def python(*arguments: str, env: Mapping[str, str] | None = None) -> Done:
    """Run Python, this one, to its end."""
    return run([sys.executable, *arguments], env)


class Child:
    """Python in a process of its own that answers each line of JSON with another."""

    def __init__(self, *arguments: str):
        self._name = " ".join(arguments)
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=ROOT,
        )

    def ask(self, question: Any) -> dict[str, Any]:
        """Return the answer to a question.

        Raises:
          RuntimeError: the process has ended; what it wrote to stderr says why.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            code = self._process.wait()
            raise RuntimeError(f"python {self._name} ended with {code}")
        return json.loads(line)


def peak_mib() -> float:
    """Most memory that this process has had at a time, in MiB.

    /proc has it for this program alone; getrusage would count the process that started
    it, from which it was forked.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024
