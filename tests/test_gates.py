"""Pre-commit and the workflow on GitHub run what make and .ci/run do, and no less."""

import re

import documented
import pytest
import yaml

ROOT = documented.ROOT
MAKEFILE = (ROOT / "Makefile").read_text()
GATE = (ROOT / ".ci" / "run").read_text()
# What differs: pre-commit gives files and lets the tool change them.
ONLY_HOOK, ONLY_MAKE = {"--force-exclude"}, {"--check", "."}


@pytest.fixture(scope="module")
def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def hooks() -> list[dict]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    return [hook for repo in config["repos"] for hook in repo["hooks"]]


def words(command: str, without: set[str]) -> list[str]:
    return [word for word in command.split() if word not in without]


def test_pre_commit_runs_the_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[1]
    wanted = [line.strip().removeprefix("$(BIN)/") for line in recipe.splitlines()]
    bin = re.search(r"^VENV \?= (\S+)", MAKEFILE, re.M)[1] + "/bin/"
    entries = [hook["entry"] for hook in hooks()]
    own = [entry.removeprefix(bin) for entry in entries if entry.startswith(bin)]
    assert [words(line, ONLY_HOOK) for line in own] == [
        words(line, ONLY_MAKE) for line in wanted
    ]
    assert all(hook["language"] == "system" for hook in hooks()), "versions of .venv"


def test_the_workflow_runs_the_gate_on_two_pythons(workflow):
    (job,) = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs == [".ci/run"]
    pythons = job["strategy"]["matrix"]["python"]
    oldest = re.search(r'python_requires=">=(.+)"', (ROOT / "setup.py").read_text())[1]
    assert len(set(pythons)) >= 2 and oldest in pythons
    (setup,) = [s for s in job["steps"] if "setup-python" in s.get("uses", "")]
    asked = setup["with"]["python-version"].split("\n")
    newest = re.search(r"PYTHON=python(\S+)", GATE)[1]
    assert newest in asked, "else the gate leaves its last stage out"
    assert asked[:-1][-1] == "${{ matrix.python }}", "the last one is python3"
    for path in setup["with"]["cache-dependency-path"].split():
        assert (ROOT / path).is_file(), path


def test_the_workflow_asks_for_little(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60 and "permissions" not in job
        for step in job["steps"]:
            uses = step.get("uses", "actions/x@v1")
            assert re.fullmatch(r"actions/[\w-]+@v\d+", uses), "pinned by major version"
