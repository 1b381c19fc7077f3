"""Notebooks: made from their sources, and every cell runs, at smoke size."""

import importlib.util
import json
import os
import subprocess
import venv
from pathlib import Path

import corpora
import jupytext
import process
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
NAMES = ("quickstart", "calibrate_your_model", "reproduce_hypelora")
NAMES += ("adapters_from_descriptions",)
# The sizes of other tests, so that each of these programs is compiled once.
SMALL = " ".join(flag for flag in process.TINY[1:] if "data" in flag or "optim" in flag)


@pytest.fixture(scope="module")
def build():
    """The module notebooks/build.py."""
    spec = importlib.util.spec_from_file_location("build", NOTEBOOKS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def choices(name: str, folder: Path) -> dict:
    """What replaces the values of the cell tagged `parameters`."""
    if name == "quickstart":
        return {"CONFIG": "smoke", "FLAGS": SMALL, "WORKDIR": str(folder / "run")}
    if name == "adapters_from_descriptions":
        tiny = "--config.model.path=random:tiny --config.condition.encoder=random:tiny"
        few = "--config.optim.num_epochs=1 --config.tasks.steps=4"
        few += " --config.condition.sign=2"  # the encoder has no more layers
        own = {"ONLY": ["positive", "quotation", "number"], "FLAGS": f"{tiny} {few}"}
        return own | {"WORKDIR": str(folder / "work")}
    if name == "calibrate_your_model":
        own = {"CONFIG": "smoke:method=lora", "FLAGS": SMALL, "TRAIN_FLAGS": ""}
        return own | {"FOLDER": str(folder / "work"), "METHODS": ("isotonic",)}
    own = {"BACKBONE": "random:tiny", "BUDGET": 0, "WORKDIR": str(folder / "paper")}
    more = ["--rows=lora", "--tasks=cola", "--seeds=1", "--config.optim.num_epochs=6"]
    own["MORE"] = [*more, "--config.data.max_length=48"]
    return own | {"DATA": str(corpora.glue(folder / "glue"))}


def with_choices(name: str, folder: Path):
    """The committed notebook with a cell behind the one tagged `parameters`."""
    book = jupytext.read(NOTEBOOKS / f"{name}.ipynb")
    at = [
        i
        for i, c in enumerate(book.cells)
        if "parameters" in c.metadata.get("tags", [])
    ]
    (at,) = at
    known = {line.split(" = ")[0] for line in book.cells[at].source.splitlines()}
    held = choices(name, folder)
    assert held.keys() <= known, "a value that the notebook does not have"
    lines = [f"{key} = {value!r}" for key, value in held.items()]
    cell = jupytext.reads("\n".join(lines), fmt="py:percent").cells[0]
    book.cells.insert(at + 1, cell)
    return book


def test_there_are_no_others():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(NAMES)


def test_files_are_what_build_makes(build):
    for path, text in build.outputs(build.repository()).items():
        assert path.read_text() == text, f"{path}: run python notebooks/build.py"


def test_notebooks_have_no_outputs():
    for name in NAMES:
        for cell in jupytext.read(NOTEBOOKS / f"{name}.ipynb").cells:
            assert not cell.get("outputs") and not cell.get("execution_count")


def test_the_address_of_the_repository_is_one_value(build):
    made = build.outputs("https://github.com/someone/else")
    for path, text in made.items():
        assert "colab.research.google.com/github/someone/else/blob" in text, path
    for address in ("", "https://example.org/x"):
        again = build.linked(made[ROOT / "README.md"], address, "a.svg")
        assert "<!-- colab: quickstart -->" in again
        assert "someone/else" not in again
        assert "Open in Colab" not in again, "Colab opens nothing from there"


LONG = ("adapters_from_descriptions",)  # it runs only in a kernel, in `make soak`


@pytest.mark.parametrize("name", [n for n in NAMES if n not in LONG])
def test_every_cell_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOKS)  # where Jupyter starts it
    space = {"__name__": "__main__"}
    cells = [c for c in with_choices(name, tmp_path).cells if c.cell_type == "code"]
    for number, cell in enumerate(cells):
        exec(compile(cell.source, f"{name}[{number}]", "exec"), space)
    assert space["ROOT"] == ROOT
    out = capsys.readouterr().out
    if name == "quickstart":
        assert '"ece_noise_floor"' in out and space["TEXTS"][0] in out
    if name == "calibrate_your_model":
        assert "divided by" in out.lower(), "the model card says what was done"
        work = tmp_path / "work"
        assert (work / "model" / "model.safetensors").exists()
        assert (work / "peft" / "adapter_model.safetensors").exists()
        own = json.loads((work / "run/eval/validation/metrics.json").read_text())
        file = json.loads(out.splitlines()[-1])
        assert file == {n: own[n] for n in file}, "predictions alone give the same"
        back = work / "classifier" / "eval/validation/metrics.json"
        assert json.loads(back.read_text())["nll"] == pytest.approx(own["nll"])
    if name == "reproduce_hypelora":
        assert "63.94 ± 0.21" in out, "the paper's LoRA on CoLA"
        assert (tmp_path / "paper" / "figure2.png").exists()


def first_cell(repo: Path) -> str:
    cells = jupytext.read(NOTEBOOKS / "quickstart.ipynb").cells
    source = next(c.source for c in cells if c.cell_type == "code")
    line = source.splitlines()[0]
    assert line.startswith("HYPELORA_REPO = ")
    return source.replace(line, f"HYPELORA_REPO = {str(repo)!r}")


def repository(folder: Path, *files: Path) -> Path:
    """A new git repository in the folder."""
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "all"], check=True)
    return folder


def test_elsewhere_the_first_cell_clones_the_repository(tmp_path, monkeypatch):
    package = tmp_path / "origin" / "src" / "hypelora_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    origin = repository(tmp_path / "origin")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for _ in range(2):  # the second time it finds its clone
        space = {}
        exec(first_cell(origin), space)
        assert space["ROOT"] == tmp_path / "elsewhere" / "hypelora_repo"
        assert (space["ROOT"] / "src" / "hypelora_jax" / "__init__.py").exists()


@pytest.mark.soak
def test_elsewhere_the_first_cell_installs(tmp_path):
    """A fresh environment: what a hosted notebook starts from."""
    venv.create(tmp_path / "venv", with_pip=True)
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True
    ).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).exists():
            target = tmp_path / "origin" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    origin = repository(tmp_path / "origin")
    (tmp_path / "elsewhere").mkdir()
    code = first_cell(origin) + "\nfrom hypelora_jax import cli\ncli.main(['doctor'])"
    env = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    run = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", code],
        cwd=tmp_path / "elsewhere",
        env={k: v for k, v in env.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "hypelora" in run.stdout


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs_in_a_kernel(name, tmp_path):
    import nbclient  # of the extra docs, which `make soak` installs

    book = with_choices(name, tmp_path)
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    client = nbclient.NotebookClient(
        book,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": NOTEBOOKS}},
    )
    client.execute(env=env)
    outputs = [out for cell in book.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs), "a picture"
    if name == "adapters_from_descriptions":
        text = "".join(out.get("text", "") for out in outputs)
        assert "The condition" in text and "nearest task" in text
        assert (tmp_path / "work" / "described" / "config.json").exists()
