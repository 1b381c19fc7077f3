"""The built wheel works on its own, installed in an empty folder.

What it depends on comes from the environment the tests run in.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
SMALL = (
    "--config.data.num_examples=64",
    "--config.data.max_length=16",
    "--config.optim.num_epochs=1",
)


def run(*argv: object, folder: Path, **environment: str) -> str:
    """Standard output of Python with the arguments, run in a folder."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_options() -> list[str]:
    """pip builds with the installed setuptools, or fetches one if that is too old."""
    asked = re.search(r'"setuptools>=(\d+)"', (ROOT / "pyproject.toml").read_text())
    try:
        major = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if major >= int(asked[1]) else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy: building in the checkout would leave files there."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(ROOT / name, source / name)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "configs", source / "configs", ignore=skipped)
    shutil.copytree(
        ROOT / "src" / "hypelora_jax",
        source / "src" / "hypelora_jax",
        ignore=lambda folder, names: {*skipped(folder, names), "configs"},
    )
    target = tmp_path_factory.mktemp("wheel")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    options = (*quiet, *build_options(), "--wheel-dir", target)
    run("-m", "pip", "wheel", *options, source, folder=target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the installed package and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    run("-m", "pip", "install", *quiet, "--target", target, wheel, folder=target)
    return target


def test_the_wheel_holds_every_package_of_the_source(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    paths = [p.relative_to(source) for p in source.rglob("*.py")]
    paths += [
        Path("hypelora_jax") / p.relative_to(ROOT) for p in ROOT.glob("configs/**/*.py")
    ]
    wanted = set(map(str, paths))
    assert held >= wanted
    others = {name for name in held - wanted if ".dist-info/" not in name}
    assert all(name.startswith("hypelora_jax/") for name in others), others


def test_the_installed_package_is_the_one_that_runs(installed, tmp_path):
    code = "import hypelora_jax, hypelora_jax.configs.smoke as config\n"
    code += "print(hypelora_jax.__file__, config.__file__, sep='\\n')"
    printed = run("-c", code, folder=tmp_path, PYTHONPATH=str(installed))
    for path in printed.splitlines():
        assert Path(path).is_relative_to(installed), path


def test_the_installed_command_explains_itself_and_trains(installed, tmp_path):
    command = installed / "bin" / "hypelora"
    place = {"folder": tmp_path, "PYTHONPATH": str(installed)}
    assert "train" in run(command, "--help", **place)
    workdir = tmp_path / "run"
    run(command, "train", "--config=smoke", f"--workdir={workdir}", *SMALL, **place)
    assert json.loads((workdir / "summary.json").read_text())
