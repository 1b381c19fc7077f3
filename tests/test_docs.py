"""What the documentation says can be typed can be typed, and runs."""

import contextlib
import io
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import corpora
import documented
import process
import pytest

from hypelora_jax import cli, flags, settings

ROOT = documented.ROOT
LINES = documented.lines()
TPU, CLOUD = "needs a TPU", "needs a cloud account"
DOWNLOAD, LONG = "a download", "more than 5 minutes"
# The one table of lines that are parsed and not run: how a line begins, and why.
NOT_RUN = {
    "make demo": LONG,
    "make lint test": LONG,
    "make plan": DOWNLOAD,
    "pytest -m soak tests/calibration/test_coverage.py": LONG,
    "python benchmarks/metrics.py": DOWNLOAD,  # the extra bench, to compare with
    "python experiments/launch/gke.py": CLOUD,
    "python experiments/reproduce.py": LONG,  # small: tests/test_reproduce.py
    "python experiments/study_cola.py": LONG,
}
# What makes a training line small, by its config: what it downloads is made here.
SYNTHETIC = ("--config.data.source=synthetic", "--config.data.num_examples=96")
GLUE = ("--config.data.source=glue_dir", "--config.data.dir=GLUE")
SMALL = (
    "--config.model.path=random:tiny",
    "--config.hyper.widths=(16,)",
    "--config.num_seeds=1",
    "--config.data.max_length=32",
    "--config.optim.num_epochs=1",
    "--config.optim.batch_size=16",
    "--config.optim.accumulate=1",
    "--config.uncertainty.samples=2",
)
DATA = {"demo": SYNTHETIC, "common": SYNTHETIC, "smoke": SYNTHETIC[1:]}
DATA |= {"glue": GLUE, "paper": GLUE, "files": ()}
# Flags of scripts at smoke size; those of `hypelora train` too where they take them.
SCRIPTS = {
    "experiments/launch/local.py": (*SYNTHETIC[1:], *SMALL),
    "experiments/pictures.py": (),
    "experiments/train.py": (*SYNTHETIC[1:], *SMALL),
    "experiments/uncertainty.py": ("--config=smoke", *SYNTHETIC[1:], *SMALL[1:-1]),
    "notebooks/build.py": (),
}
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))


class Stdin(io.TextIOWrapper):
    """What a pipe gives a command."""

    def __init__(self, text: str):
        super().__init__(io.BytesIO(text.encode()), "utf-8")


def values(line: documented.Line, name: str) -> list[str]:
    """What a line gives for the flag --name."""
    return [arg.split("=", 1)[1] for arg in line.argv if arg.startswith(f"--{name}=")]


def parse(argv: list[str]) -> None:
    """Through the real parser and the real configs; a mistake is a UserError."""
    rest, overrides = cli._split(argv)
    args = vars(cli._parser().parse_args(rest))
    if args.get("config"):
        settings.from_dict(cli.load_config(args["config"], overrides).to_dict())
    else:
        assert not overrides, f"{overrides} without --config"


def check_make(argv: list[str]) -> None:
    variables = [word for word in argv if "=" in word]
    wrong = set(argv) - set(variables) - TARGETS
    assert not wrong, f"make has no {wrong}"
    for word in variables:
        assert re.search(rf"^{word.split('=')[0]} \?=", MAKEFILE, re.M), word


def check_script(argv: list[str]) -> None:
    script = ROOT / argv[0]
    assert script.is_file(), f"no file {argv[0]}"
    assert "--" not in argv or argv[0].startswith("experiments/launch/")
    own, _, trains = " ".join(argv[1:]).partition("-- ")
    if argv[0] == "experiments/train.py":
        own, trains = "", re.sub(r" ?--distributed=\S+", "", own)
    if trains:
        parse(["train", *trains.split()])
    for name in re.findall(r"--([a-z_]+)=", own):
        assert f'"--{name}"' in script.read_text(), f"{argv[0]} has no flag --{name}"


def check(line: documented.Line) -> None:
    """Refuses what could not be typed, without running it."""
    if line.word == "hypelora":
        parse(line.argv[1:])
    elif line.word == "make":
        check_make(line.argv[1:])
    elif line.word == "python":
        check_script(line.argv[1:])
    else:
        for word in line.argv[1:]:
            path = "/" in word and not word.startswith("-")
            assert not path or (ROOT / word).exists(), word


def test_every_line_can_be_typed(monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = []
    for line in LINES:
        try:
            check(line)
        except (Exception, SystemExit) as error:
            wrong.append(f"{line.page}: {line.text}: {error}")
    assert not wrong, "\n".join(wrong)
    words = {line.word for line in LINES}
    assert words == set(documented.WORDS), "lines were found"
    assert len(LINES) > 40


@pytest.mark.parametrize(
    "text",
    [
        "hypelora trian --workdir=x",
        "hypelora train --config=smoke --workdir=x --config.optim.lrr=1",
        "hypelora train --config=glue:task=colla --workdir=x --config.loss.name=no",
        "hypelora report --workdirs=x",
        "make demos",
        "make test PYTHN=python3.12",
        "python experiments/no_such.py",
        "python experiments/demo.py --work=x",
        "python experiments/train.py --config=smoke --workdir=x --config.no=1",
        "pytest tests/no_such.py",
    ],
)
def test_a_wrong_line_is_found(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, AssertionError)):
        check(documented.Line("", text))


def test_lines_are_taken_out_whole():
    page = (
        "text `make x` more\n\n    make smoke      says make\n"
        "    hypelora metrics  --predictions=FILE \\\n"
        "                      [--replicas=1000]      intervals\n"
        '    echo \'{"text": "a b"}\' | hypelora predict --workdir=DIR\n'
        "    mpirun -n 2 python experiments/train.py --workdir=x\n\n"
        "```text\nmake demo  # long\nno command\n```\n"
    )
    found = [documented._line("", text) for text in documented._commands(page)]
    assert [(line.text, line.stdin) for line in found] == [
        ("make demo", ""),
        ("make smoke", ""),
        ("hypelora metrics --predictions=FILE --replicas=1000", ""),
        ("hypelora predict --workdir=DIR", '{"text": "a b"}\n'),
        ("python experiments/train.py --workdir=x", ""),
    ]


def test_commands_in_running_text_exist():
    for page, text in documented.inline():
        word, name, *_ = text.split()
        if word == "make":
            check_make(text.split()[1:])
        elif word == "python":
            assert (ROOT / name).is_file(), f"{page}: {text}"
        elif name not in ("COMMAND", "VERSION"):
            assert name in cli.COMMANDS, f"{page}: {text}"
            known = {"config", *(flags.NAMES.get(k, k) for k in cli.COMMANDS[name][1])}
            used = re.findall(r"--([a-z_-]+)", text)
            assert set(used) <= known, f"{page}: {text}"


def test_the_table_of_lines_not_run_is_of_use():
    assert set(NOT_RUN.values()) <= {TPU, CLOUD, DOWNLOAD, LONG}
    for start in NOT_RUN:
        assert any(line.text.startswith(start) for line in LINES), f"no line {start}"
    for line in LINES:
        if line.word == "python" and not not_run(line):
            assert line.argv[1] in SCRIPTS, f"{line.text}: how is it run small?"


def not_run(line: documented.Line) -> bool:
    return any(line.text.startswith(start) for start in NOT_RUN)


# --- every line is run ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what the lines read: data, a finished run, its export."""
    folder = tmp_path_factory.mktemp("world")
    corpora.glue(folder / "GLUE")
    texts = (folder / "GLUE" / "SST-2" / "train.tsv").read_text().splitlines()[1:97]
    rows = [line.split("\t") for line in texts]
    names = ("negative", "positive")
    table = "".join(f"{text},{names[int(label)]}\n" for text, label in rows)
    for name in ("train.csv", "validation.csv"):
        (folder / name).write_text(f"text,label\n{table}")
    pair = '{{"claim": "{0}", "evidence": "{0}", "verdict": "{1}"}}\n'
    (folder / "pairs.jsonl").write_text("".join(pair.format(*row) for row in rows))
    lines = "".join(f'{{"text": "{text}"}}\n' for text, _ in rows[:8])
    (folder / "in.jsonl").write_text(lines)
    (folder / "in.csv").write_text(f"text,label\n{table}")
    with contextlib.chdir(folder):
        run = ["--workdir=template/run"]
        config = ["--config=smoke:method=lora", *SYNTHETIC, *SMALL]
        assert cli.main(["train", *config, *run]) == 0
        assert cli.main(["export", *run, "--output=template/peft"]) == 0
    return folder


def made_ready(line: documented.Line, world: Path) -> None:
    """Gives the line the folders it reads, and takes away those it makes."""
    name = line.argv[1]
    makes = {"train": "workdir", "import": "workdir"}
    for folder in values(line, "workdir"):
        path = world / folder
        if name in makes or line.word == "python":
            shutil.rmtree(path, ignore_errors=True)
        elif not path.exists():
            shutil.copytree(world / "template" / "run", path)
    for folder in values(line, "predictions"):
        if not (world / folder).exists():
            run = (world / folder).parents[2]
            shutil.copytree(world / "template" / "run", run, dirs_exist_ok=True)
    for folder in values(line, "adapter"):
        if not (world / folder).exists():
            shutil.copytree(world / "template" / "peft", world / folder)
    for path in values(line, "output"):
        if (world / path).is_dir():
            shutil.rmtree(world / path)
    if "pictures.py" in line.text:
        for method in ("lora", "hyper_mlp", "head"):
            shutil.copytree(world / "template" / "run", world / "runs/demo" / method)


def placed(line: documented.Line) -> documented.Line:
    """The line with names for what it only calls FILE, DIR, HOST:PORT,COUNT,RANK."""
    new = "train" in line.text or line.word == "python"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    names = {
        "FILE": "template/run/eval/validation/predictions.npz",
        "DIR": "runs/new" if new else "template/run",
        "HOST:PORT,COUNT,RANK": f"localhost:{port},1,0",
    }
    places = "|".join(names)
    text = re.sub(rf"(?<==)({places})\b", lambda found: names[found[1]], line.text)
    return line._replace(text=text)


def small(line: documented.Line) -> list[str]:
    """The line's arguments at smoke size."""
    argv = line.argv[1:]
    if line.word == "python":
        return [str(ROOT / argv[0]), *argv[1:], *SCRIPTS[argv[0]]]
    argv = [re.sub(r"^--topology=.*", "--topology=cpu-2", a) for a in argv]
    if argv[0] == "report":
        argv.append("--replicas=20")
    for config in values(line, "config"):
        argv += [*DATA[config.partition(":")[0]], *SMALL]
    return argv


RUN = [line for line in LINES if not not_run(line) and line.word != "pytest"]


@pytest.mark.soak
@pytest.mark.parametrize("line", RUN, ids=lambda line: f"{line.page}: {line.text[:70]}")
def test_every_line_runs(line, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    if line.word == "make":  # its environment is the one that runs this
        own = [f"--old-file={sys.prefix}/.base", f"VENV={sys.prefix}"]
        subprocess.run(["make", "-C", ROOT, *own, *line.argv[1:]], check=True)
        return
    line = placed(line)
    made_ready(line, world)
    argv = small(line)
    if line.word == "python":
        done = process.python(*argv)
        out, err = done.communicate(timeout=600)
        assert done.returncode == 0, err[-2000:]
        return
    monkeypatch.setattr(sys, "stdin", Stdin(line.stdin or '{"text": "go"}\n'))
    assert cli.main(argv) == 0, capsys.readouterr().err[-2000:]
    if argv[0] == "predict":
        asked = values(line, "output")
        said = (world / asked[0]).read_text() if asked else capsys.readouterr().out
        assert "prob" in said
