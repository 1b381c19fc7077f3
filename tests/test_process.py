"""The command line as a process: pipes, full disks, any folder."""

import os
import subprocess
import sys


def hypelora(*argv, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "hypelora_jax.cli", *argv]
    env = {**os.environ, "PYTHONUNBUFFERED": ""}  # empty: buffered, as users have it
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=env, **kwargs
    )


def test_a_bare_name_finds_the_installed_configs_from_any_folder(tmp_path):
    process = hypelora("train", "--config=smoke:x=1", "--workdir=w", cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 2 and "'x=1' is unknown" in err
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    process = hypelora("doctor", stdout=write)
    os.close(write)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


def test_a_full_disk_under_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        process = hypelora("doctor", stdout=full)
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith("hypelora: error: No space left") and err.count("\n") == 1
