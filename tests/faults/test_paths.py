"""Kind K: paths. `[ ]`, `*` and backslashes, `~`, empty paths, and addresses.

Every path that a user gives goes through `files.user_path`, and nothing takes the name
of a folder for a pattern.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import re
import shutil
import sys

import pytest
from etils import epath
from source_tree import PACKAGE, ROOT

import hypelora_jax
from hypelora_jax import cli, files
from hypelora_jax.commands import COMMANDS
from hypelora_jax.commands import train as runs
from hypelora_jax.commands.shared.flags import PathFlag, PathFlags
from hypelora_jax.config import ranges
from hypelora_jax.config.settings import SECTIONS, from_dict
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.run.paths import Run

ADDRESSES = ("https://x/y", "s3://b/x", "file:///tmp/x", "GS://b/x", "a://b")
FEW = {
    "method": "lora",
    "model": {"path": "random:tiny"},
    "data": {"source": "synthetic", "num_examples": 64, "max_length": 32},
    "lora": {"rank": 2},
    "optim": {"num_epochs": 2, "batch_size": 32, "lr": 3e-3},
    "log": {"every_steps": 1, "writers": ()},
}
# Flags and fields that take a string and are not paths. A new one that is a path must
# be a `PathFlag`, or have one of the types `File` and `ModelPath`.
WORDS = set(
    "--config --format --split --formats --only --text --text_b --host --link "
    "--topology --description --labels --tune --oracle".split()
)
FIELDS = set(
    "model.revision hyper.cond condition.source condition.join head.kind "
    "loss.objective loss.name loss.penalty data.source data.task data.text data.text_b "
    "data.label data.condition uncertainty.kind".split()
)


def flags_of(command):
    parser = cli.parser([command])
    (parsers,) = (x for x in parser._actions if hasattr(x, "_name_parser_map"))
    return parsers._name_parser_map[command]._actions


TEXTS = [
    (command, action.option_strings[0], isinstance(action, PathFlag))
    for command in COMMANDS
    for action in flags_of(command)
    if action.nargs is None and action.type is None and not action.choices
]
PATH_FLAGS = [(command, flag) for command, flag, is_path in TEXTS if is_path]
PATH_FIELDS = [
    f"{section}.{name}"
    for section, kind in SECTIONS.items()
    for name in ranges.paths(kind)
]
NO_PATHS = (*ADDRESSES, "x" * 5000, "~no-such-user/x")


def with_field(path, value):
    section, _, name = path.partition(".")
    return getattr(getattr(from_dict({section: {name: value}}), section), name)


def line_of(capsys, *argv):
    """The one line that a command ends with, which must be the user's mistake."""
    assert cli.main(list(argv)) == 2, argv
    out, err = capsys.readouterr()
    (line,) = (x for x in err.splitlines() if x.startswith("hypelora: "))
    assert not out and line.startswith("hypelora: error: ")
    return line


# ---------------------------------------------------------------- one function for all


def test_every_flag_that_takes_a_text_is_a_path_or_known_not_to_be():
    assert {flag for _, flag, is_path in TEXTS if not is_path} == WORDS
    assert len(PATH_FLAGS) == 30
    kinds = {c: [f for k, f in PATH_FLAGS if k == c] for c in COMMANDS}
    assert kinds["calibrate"] == ["--workdir", "--predictions", "--apply", "--output"]


def test_every_field_that_takes_a_text_is_a_path_or_known_not_to_be():
    texts = {
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if ranges.hints(kind)[field.name] is str
    }
    assert texts - set(PATH_FIELDS) == FIELDS
    data = "dir train calibration validation test".split()
    adapter = ["condition.file", "condition.encoder", "tasks.file"]
    fields = ["model.path", *adapter, *(f"data.{n}" for n in data), "ckpt.start"]
    assert fields == PATH_FIELDS


@pytest.mark.parametrize("command, flag", PATH_FLAGS)
def test_f24_f25_f26_every_flag_refuses_what_is_no_path(command, flag, capsys):
    what = files.MODEL if flag == "--model" else files.PATH
    for given in (*NO_PATHS, ""):
        line = line_of(capsys, command, f"{flag}={given}")
        assert line.startswith(f"hypelora: error: {flag} is ") and "expected" in line
        if given in ADDRESSES:
            assert f"is the address {given!r}; expected {what}" in line


@pytest.mark.parametrize("field", PATH_FIELDS)
def test_f24_f26_every_field_refuses_what_is_no_path(field):
    for given in (*NO_PATHS, "a\0b", "\ud83d", 5):
        with pytest.raises(UserError, match=rf"^config\.{field} is .*expected"):
            with_field(field, given)


@pytest.mark.parametrize("command, flag", PATH_FLAGS)
def test_f24_every_flag_expands_the_home_folder(command, flag, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (action,) = (x for x in flags_of(command) if flag in x.option_strings)
    for given, wanted in (("~/x", f"{tmp_path}/x"), ("./~/x", "./~/x"), ("-", "-")):
        found = argparse.Namespace(**{action.dest: None})
        action(argparse.ArgumentParser(), found, given)
        several = isinstance(action, PathFlags)
        assert getattr(found, action.dest) == ([wanted] if several else wanted)


def test_f24_every_field_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for field in PATH_FIELDS:
        assert with_field(field, "~/x") == f"{tmp_path}/x"
        assert with_field(field, "./~/x") == "./~/x"


def test_f25_a_field_that_is_empty_by_default_is_not_given():
    assert with_field("data.train", "") == with_field("condition.file", "") == ""
    assert with_field("tasks.file", "") == ""
    with pytest.raises(UserError, match=r"^config\.model\.path is empty .*expected a"):
        with_field("model.path", "")


OF_SCRIPTS = {
    *("--workdir", "--output", "--cache", "--data"),
    *("--json", "--glue", "--baseline"),
}
SCRIPTS = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]


def test_scripts_read_their_paths_with_the_same_flags():
    for file in SCRIPTS:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            flag = getattr(node.args[0], "value", None)
            if flag in OF_SCRIPTS:
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given["action"] in ("PathFlag", "PathFlags"), (file, flag)


@pytest.mark.parametrize("given", ["https://x/y", "", "~nobody1/x", "a\0b"])
def test_the_python_interface_refuses_the_same(given):
    with pytest.raises(UserError, match="^workdir is .*; expected "):
        hypelora_jax.load(given)
    with pytest.raises(UserError, match=r"^model\.path is .*; expected "):
        hypelora_jax.base_model(given)


def test_f25_f26_a_config_file_is_a_path_too(capsys, tmp_path):
    run = tmp_path / "run"
    for given in ("https://x/y", "https://x/y.py", "", "~/no.py", "a\0.py"):
        line = line_of(capsys, "train", f"--config={given}", f"--workdir={run}")
        assert "config" in line and "expected" in line and not run.exists()


def test_a_config_file_may_have_colons_and_a_home(monkeypatch, tmp_path):
    text = (ROOT / "configs/smoke.py").read_text()
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b/c.py").write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    for arg in ("", ":method=head"):
        assert cli.load_config(f"~/a:b/c.py{arg}") == cli.load_config(f"smoke{arg}")


# ---------------------------------------------------- whole commands, other members


def test_f26_a_bucket_without_its_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    assert "gs://... needs gcsfs" in line_of(capsys, "report", "--workdir=gs://b/x")


def test_the_cache_is_a_local_path(monkeypatch):
    for given in ("https://x/y", "gs://b/x"):
        monkeypatch.setenv(files.ENV, given)
        with pytest.raises(
            UserError, match="HYPELORA_CACHE is .*expected a local path"
        ):
            files.root()


def test_f23_no_code_takes_the_name_of_a_folder_for_a_pattern():
    """`glob` of pathlib takes its folder literally; that of epath does not."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if re.search(r"\bi?r?glob$", name) and file.stem != "files":
                of_pathlib = name.startswith("Path(") or file.stem == "movie_reviews"
                assert of_pathlib, f"{file}: {name}"


@pytest.mark.parametrize("name", ["r[1]", "r*", "r?", "r[!a]", "[[]", "r{1}", "r\\1"])
def test_f23_a_folder_lists_its_own_files_alone(name, tmp_path):
    for folder in (name, "r1", "r[1]x"):  # the second matches most of the names
        (tmp_path / folder / "deep").mkdir(parents=True, exist_ok=True)
        for file in ("a.txt", "b.txt", "b.bin", ".c.txt"):
            (tmp_path / folder / file).write_text("")
        (tmp_path / folder / "deep" / "d.txt").write_text("")
    path = files.LiteralPath(tmp_path / name)
    assert list(path.glob("*.txt")) == [path / "a.txt", path / "b.txt"]
    assert list(path.glob("deep/?.txt")) == [path / "deep/d.txt"]
    assert list((path / "no").glob("*")) == files.listed(path / "no") == []
    assert files.listed(path, start="b", end=".txt") == [path / "b.txt"]
    assert type(path.parent / "x") is type(path.with_name("y")) is files.LiteralPath


def test_f23_the_sum_of_base_weights_is_that_of_their_bytes(tmp_path):
    for name in ("base[v2]", "basev", "base2"):
        (tmp_path / name).mkdir()
        for part in ("b", "a"):
            (tmp_path / name / f"{part}.safetensors").write_text(name + part)
    digest = hashlib.sha256(b"base[v2]abase[v2]b").hexdigest()
    one = bases.Base(None, epath.Path(tmp_path / "base[v2]"), "", "")
    assert bases.weights_sha256(one) == digest


@pytest.mark.parametrize("command", ["train --config=smoke", "evaluate", "report"])
def test_f23_a_backslash_is_refused_before_any_work(command, tmp_path, capsys):
    line = line_of(capsys, *command.split(), f"--workdir={tmp_path}/a\\b")
    assert "has a backslash" in line and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bracketed(tmp_path_factory):
    """A run that was trained in a folder whose name is a pattern of another one."""
    folder = tmp_path_factory.mktemp("home [a-z]") / "lr[0.1]"
    (folder.parent / "lr0" / "eval" / "train").mkdir(parents=True)
    (folder.parent / "lr0" / "eval" / "train" / "metrics.json").write_text("{}")
    return folder, runs.train(from_dict(FEW), str(folder), progress=False)


def test_f23_training_in_brackets_is_whole_and_goes_on(bracketed, tmp_path):
    folder, summary = bracketed
    last = max(int(p.name) for p in (folder / "checkpoints").iterdir())
    assert (folder / f"checkpoints/{last}/state/manifest.ocdbt").exists()
    again = shutil.copytree(folder, tmp_path / "lr[0.1]")
    (again / "summary.json").unlink()
    shutil.rmtree(again / f"checkpoints/{last}")
    went_on = runs.train(from_dict(FEW), str(again), progress=False)
    assert went_on["metrics"] == summary["metrics"]


def test_f23_f24_a_moved_run_gives_the_same_numbers(
    bracketed, tmp_path, monkeypatch, capsys
):
    folder, summary = bracketed
    home = tmp_path / "h[1]"
    shutil.copytree(folder, home / "moved[1]")
    shutil.copytree(folder, home / "moved1" / "seed_7")  # moved[1]/* must not find it
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (home / "texts.jsonl").write_text('{"text": "a"}\n')

    def done(*argv):
        assert cli.main(list(argv)) == 0, capsys.readouterr().err
        return capsys.readouterr().out.splitlines()

    got = json.loads(done("evaluate", "--workdir=~/moved[1]")[-1])
    assert got["nll"] == pytest.approx(
        summary["metrics"]["validation"]["nll"], abs=1e-6
    )
    calibrated = json.loads(done("calibrate", "--workdir=~/moved[1]")[-1])
    after = json.loads((home / "moved[1]/eval/validation/metrics.json").read_text())
    assert after["nll"] == pytest.approx(calibrated["after"]["nll"]["value"], abs=1e-6)
    predictions = "--predictions=~/moved[1]/eval/validation/predictions.npz"
    assert json.loads(done("metrics", predictions)[-1])["n"] == got["n"]
    done("report", "--workdir=~/moved[1]", "--output=~/r[1]/r.html", "--replicas=0")
    assert f"{got['accuracy']:.3f}" in (home / "r[1]/r.html").read_text()
    done(
        "predict", "--workdir=~/moved[1]", "--input=~/texts.jsonl", "--output=~/o.jsonl"
    )
    assert json.loads((home / "o.jsonl").read_text())["label"]
    assert done("export", "--workdir=~/moved[1]", "--output=~/ex[1]")
    assert f"{got['accuracy']:.3f}" in (home / "ex[1]/README.md").read_text()
    assert not (tmp_path / "~").exists()
    splits = Run.open(folder).evaluated_splits()
    assert Run.open("~/moved[1]").evaluated_splits() == splits != []


def test_a_loop_of_links_is_one_line(bracketed, tmp_path, capsys):
    (tmp_path / "a.csv").symlink_to(tmp_path / "a.csv")
    run = f"--workdir={bracketed[0]}"
    line = line_of(capsys, "predict", run, f"--input={tmp_path}/a.csv")
    assert "a.csv" in line and "expected" in line
