"""`hypelora predict` as a process: pipes, a reader that leaves, memory."""

import ast
import json
import subprocess

import process
import pytest
import step_zero

import hypelora_jax


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return step_zero.run_folder(tmp_path_factory.mktemp("run") / "run", "lora")


def test_a_slow_pipe_gets_its_answers_and_a_reader_may_leave(run):
    """An answer comes while the pipe is open; then the reader closes its end."""
    pipe = subprocess.PIPE
    with process.start("predict", f"--workdir={run}", stdin=pipe) as command:
        for n in range(2):
            command.stdin.write(json.dumps({"text": "ab", "n": n}) + "\n")
            command.stdin.flush()
            answer = json.loads(command.stdout.readline())
            assert answer["n"] == n and answer["label"] in ("no", "yes")
        command.stdout.close()
        command.stdin.write(json.dumps({"text": "a" * 99}) + "\n")
        command.stdin.close()
        assert command.wait(timeout=120) == 0
        assert command.stderr.read() == ""


# Not getrusage: its peak begins with that of the process that started this one.
PEAK = """
import re, sys
from hypelora_jax import cli
assert cli.main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak(run, tmp_path, lines: int, kind: str) -> int:
    """Peak memory in KiB of a process that answers so many lines."""
    source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    with source.open("w") as file:
        file.write("text,n\n" if kind == "csv" else "")
        for n in range(lines):
            text = f"row {n} " + "of some length " * (n % 4)
            row = {"text": text, "n": n}
            file.write(f'"{text}",{n}\n' if kind == "csv" else json.dumps(row) + "\n")
    flags = [f"--workdir={run}", f"--input={source}", f"--output={target}"]
    command = process.python("-c", PEAK, "predict", *flags)
    out, err = command.communicate(timeout=900)
    assert command.returncode == 0, err
    with target.open() as file:
        assert sum(1 for _ in file) == lines + (kind == "csv")
    return int(out)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_memory_does_not_grow_with_the_lines(run, tmp_path, kind):
    few, many = (peak(run, tmp_path, n, kind) for n in (10_000, 100_000))
    print(f"{kind}: {few} KiB for 10,000 lines, {many} KiB for 100,000")
    assert many <= 1.2 * few


@pytest.mark.soak  # the same lines run in this process all the time
def test_three_lines_of_python(run):
    """In a process that imports nothing else, as the README says."""
    code = (
        f"import hypelora_jax\nmodel = hypelora_jax.load({str(run)!r})\n"
        'print(*model.predict(["Better than the first one."]))'
    )
    out, err = process.python("-c", code).communicate(timeout=120)
    (wanted,) = hypelora_jax.load(str(run)).predict(["Better than the first one."])
    got = ast.literal_eval(out)
    assert got["label"] == wanted["label"], err
    assert got["probs"] == pytest.approx(wanted["probs"], abs=1e-6)
