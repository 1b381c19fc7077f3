"""The command line: what a user types wrong is one line and exit code 2."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest

import hypelora_jax
from hypelora_jax import cli
from hypelora_jax.commands import doctor
from hypelora_jax.config import settings
from hypelora_jax.errors import Preempted, UserError

RUN = ["train", "--config=smoke", "--workdir=unused"]


def one_line(capsys) -> str:
    """The one line on stderr; nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hypelora: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian' (choose from"),
        ([*RUN, "--nonsense=1"], "--nonsense=1"),
        ([*RUN, "nonsense"], "nonsense"),
        (["train", "--config=smoke"], "required: --workdir"),
        (["train", "--workdir=unused"], "required: --config"),
        (["evaluate"], "required: --workdir"),
        (["metrics"], "required: --predictions"),
        ([*RUN, "--work=x"], "--work=x"),  # no abbreviations
        ([*RUN, "--config.optim.lrr=1"], "no field 'optim.lrr'; did you mean 'lr'?"),
        ([*RUN, "--config.optm.lr=1"], "no field 'optm.lr'; did you mean 'optim'?"),
        ([*RUN, "--config.method.x=1"], "no field 'method.x'"),
        ([*RUN, "--config.optim=1"], "config.optim is a section"),
        ([*RUN, "--config.optim.lr=fast"], "optim.lr is 'fast'; expected float"),
        ([*RUN, "--config.optim.lr"], "--config.optim.lr"),
        ([*RUN, "--config.seed", "1.5"], "config.seed is '1.5'; expected int"),
        ([*RUN, "--config.optim.decay_all=2"], "decay_all is '2'; expected bool"),
        ([*RUN, "--config.hyper.widths=a,b"], "hyper.widths"),
        ([*RUN, "--config.loss.temperature=cold"], "loss.temperature is 'cold'"),
        (
            [*RUN, "--config.hyper.a=made"],
            "hyper.a is 'made'; expected one of generated",
        ),
        (
            ["train", "--config=smoke:method=loar", "--workdir=x"],
            "expected one of full",
        ),
        (
            ["train", "--config=smoke:mthd=lora", "--workdir=x"],
            "'mthd=lora' is unknown",
        ),
        (
            ["train", "--config=smke", "--workdir=x"],
            "no config 'smke'; expected one of",
        ),
        (
            ["train", "--config=no/such.py", "--workdir=x"],
            "no config file 'no/such.py'",
        ),
        (["train", "--config=no/such", "--workdir=x"], "no config file 'no/such'"),
        (["evaluate", "--workdir=x", "--config.seed=1"], "expected no --config flags"),
        (["metrics", "--predictions=no_such.npz"], "no_such.npz"),
        (["report", "--workdir=no_such_run"], "no_such_run"),
        (["evaluate", "--workdir=no_such_run"], "no_such_run"),
        (["predict", "--workdir=no_such_run", "--input=no_such"], "no_such_run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, capsys):
    assert cli.main(argv) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(arg", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "does not define get_config"),
        ("def get_config(arg=None):\n    return arg.x", "AttributeError"),
        ("def get_config(arg=None):\n    return {}", "returned dict"),
    ],
)
def test_a_config_file_that_fails_is_the_users(text, message, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert cli.main(["train", f"--config={path}", "--workdir=unused"]) == 2
    assert message in one_line(capsys)


def fails_with(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("got a\n  b"), 2, "error: got a b"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("saved at step 3"), 130, "interrupted: saved at step 3"),
        (Preempted("saved at step 3"), 75, "preempted: saved at step 3"),
        (ValueError("a\nb"), 3, "internal error: ValueError: a b; --debug shows"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            2,
            "error: x: No space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "error: x: Perm"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "error: x: Not"),
        (OSError(errno.EIO, "Input/output error"), 3, "internal error: OSError"),
        (ValueError("tensorstore: No space left on device"), 2, "error: No space left"),
        (RuntimeError("Unable to initialize backend 'tpu'"), 2, "error: Unable to"),
    ],
)
def test_every_error_has_its_exit_code(error, code, line, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", fails_with(error))
    assert cli.main(["doctor"]) == code
    assert one_line(capsys).startswith(f"hypelora: {line}")


@pytest.mark.parametrize("argv", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(argv, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", fails_with(UserError("x")))
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("hypelora: error: x\n")


def test_a_check_that_says_no_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(doctor, "run", lambda: False)
    assert cli.main(["doctor"]) == 1


def test_help_is_there_at_once():
    """Nothing that takes seconds to import is imported before a command runs."""
    code = (
        "import sys\nfrom hypelora_jax import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.endswith("set()\n"), run.stdout + run.stderr


@pytest.mark.parametrize("argv", [[], *([name] for name in cli.COMMANDS)])
def test_help_of_every_command(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*argv, "--help"])
    assert caught.value.code == 0
    assert "usage: hypelora" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"hypelora {hypelora_jax.__version__}\n"


def test_every_config_is_valid_and_says_its_model_and_data():
    for spec in ("common", "demo", "smoke", "glue", "files"):
        made = settings.from_dict(cli.load_config(spec).to_dict())
        assert made.model.path and made.data.source


def test_common_is_the_defaults_of_the_dataclasses():
    common = cli.load_config("common").to_dict()
    assert settings.from_dict(common) == settings.Settings()


def test_arguments_and_overrides_reach_the_settings():
    overrides = [
        "--config.optim.lr=2e-4",
        "--config.optim.num_epochs",
        "7",
        "--config.mesh.data",
        "-1",
        "--config.optim.decay_all",
        "--config.data.text=a, b=c",
        "--config.hyper.widths=(8,4)",
        "--config.hyper.layers=0,2",
        "--config.loss.temperature=learned",
        "--config.lora.targets=q|v",
    ]
    argv = ["train", "--config=glue:task=rte,method=lora,a=fixed", "--workdir=w"]
    rest, found = cli._split([*argv, *overrides])
    assert (rest, found) == (argv, overrides)
    config = cli.load_config(argv[1].removeprefix("--config="), overrides)
    made = settings.from_dict(config.to_dict())
    assert (made.method, made.hyper.a, made.data.task) == ("lora", "fixed", "rte")
    assert (made.optim.lr, made.optim.num_epochs, made.mesh.data) == (2e-4, 7, -1)
    assert made.optim.decay_all and made.data.text == "a, b=c"
    assert (made.hyper.widths, made.hyper.layers) == ((8, 4), (0, 2))
    assert (made.loss.temperature, made.lora.targets) == ("learned", "q|v")


def test_targets_may_be_several_names():
    config = cli.load_config("files", ["--config.lora.targets=('q', 'up')"])
    assert settings.from_dict(config.to_dict()).lora.targets == ("q", "up")


def test_a_config_file_is_taken_by_its_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from hypelora_jax.configs import common\n"
        "def get_config(arg=None):\n"
        "    config = common.get_config()\n"
        "    config.seed = common.parse_arg(arg, seed=1).seed\n"
        "    return config\n"
    )
    assert cli.load_config(str(path)).seed == 1
    assert cli.load_config(f"{path}:seed=5", ["--config.optim.lr=1"]).seed == 5
    with pytest.raises(UserError, match="seed=five; expected int"):
        cli.load_config(f"{path}:seed=five")


def test_metrics_prints_one_json_object(tmp_path, capsys):
    path = tmp_path / "predictions.npz"
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    np.savez(path, probs=probs, labels=np.array([0, 1, 1]))
    assert cli.main(["metrics", f"--predictions={path}"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1
    assert json.loads(out)["accuracy"] == pytest.approx(2 / 3)


def test_the_seed_of_metrics_counts_without_replicas_too(tmp_path, capsys):
    path = tmp_path / "predictions.npz"
    p, u = np.random.default_rng(0).uniform(size=(2, 50, 1))
    np.savez(path, probs=np.hstack([1 - p, p]), labels=(u < p)[:, 0].astype(int))

    def printed(*flags):
        assert cli.main(["metrics", f"--predictions={path}", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    plain, other = printed(), printed("--seed=7")
    assert printed("--seed=0") == plain
    changed = {name for name in plain if plain[name] != other[name]}
    assert changed == {"ece_noise_floor", "consistency_p"}
    assert cli.main(["metrics", f"--predictions={path}", "--seed=-1"]) == 2
    assert "seed is -1; expected at least 0" in capsys.readouterr().err


def test_a_run_from_training_to_report(tmp_path, capsys):
    run, page = tmp_path / "run", tmp_path / "report.html"
    small = ["--config.data.num_examples=32", "--config.optim.num_epochs=1"]
    train = ["train", "--config=smoke:method=lora", f"--workdir={run}", *small]
    assert cli.main(train) == 0
    assert capsys.readouterr().out == ""  # progress and tables go to stderr

    assert cli.main(["evaluate", f"--workdir={run}", "--split=test"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((run / "eval/test/metrics.json").read_text())

    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text('{"text": "one", "id": 7}\n{"text": "two"}\n')
    predict = ["predict", f"--workdir={run}", f"--input={lines}", f"--output={out}"]
    assert cli.main(predict) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert (first["text"], first["id"], second["text"]) == ("one", 7, "two")
    assert first["probs"][first["label"]] == first["confidence"]

    lines.write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n')
    before = out.read_text()
    capsys.readouterr()
    assert cli.main(predict) == 2
    assert "input line 2: byte 0xff is not UTF-8" in capsys.readouterr().err
    assert out.read_text() == before  # a failure leaves the old results
    kept = json.loads((tmp_path / "out.jsonl.part").read_text())  # and the new ones
    assert kept["text"] == "one"

    predictions = run / "eval/test/predictions.npz"
    assert cli.main(["metrics", f"--predictions={predictions}"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == printed["n"]

    report = ["report", f"--workdir={run}", f"--output={page}", "--replicas=0"]
    assert cli.main([*report, "--split=test", "--formats=html,csv"]) == 0
    assert page.read_text().lstrip().startswith("<!")
    assert page.with_suffix(".csv").read_text().startswith("split,stage,method")
    assert not page.with_suffix(".md").exists()
    assert cli.main([*report, "--split=tset"]) == 2
    assert "'tset'" in capsys.readouterr().err
    assert cli.main([*report, "--formats=pdf"]) == 2
    assert "'pdf'" in capsys.readouterr().err

    assert cli.main(train) == 0  # finished: says so, does nothing
    assert cli.main([*train, "--config.seed=1"]) == 2  # another run's folder


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main([*RUN[:2], f"--workdir={tmp_path}/file/run"]) == 2
    assert f"{tmp_path}/file" in one_line(capsys)
