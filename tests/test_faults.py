"""Faults of a real training run: disks, divergence, damaged files; own data."""

import json
import re
import resource

import process
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hypelora_jax import cli
from hypelora_jax.run.metric_log import rows_until


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


@pytest.mark.fault("disk full during a save", "one line, exit 2; goes on once mended")
def test_a_full_disk_while_saving_is_one_line_and_loses_nothing(tmp_path):
    """A limit on the size of files stands for a disk without room for a checkpoint."""
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    limit = 40_000  # bytes: the rows of metrics.jsonl fit, a checkpoint does not

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    broken = process.run(*args, "--config.hyper.widths=(256,)", preexec_fn=small_disk)
    assert broken.returncode == 2, broken.stderr[-2000:]
    line = last_line(broken.stderr)
    assert line.startswith("hypelora: error: cannot save step 2"), line
    assert "the last complete checkpoint is step None" in line
    mended = process.run(*args, "--config.hyper.widths=(256,)")
    assert mended.returncode == 0, mended.stderr[-2000:]
    assert [r["step"] for r in process.rows(workdir) if r["split"] == "train"] == list(
        range(1, 13)
    )


@pytest.mark.soak  # in short: the next one, a loss that is not finite
@pytest.mark.fault("a run that diverges", "stops with step, ids and the way out")
def test_a_diverged_run_stops_with_the_way_out(tmp_path):
    args = ("train", *process.TINY, f"--workdir={tmp_path / 'run'}")
    done = process.run(*args, "--config.optim.lr=1e30", "--config.optim.clip=0.0")
    assert done.returncode == 2, done.stderr[-2000:]
    line = last_line(done.stderr)
    assert "at step" in line and "lower config.optim.lr" in line


@pytest.fixture(scope="module")
def explosive(tmp_path_factory):
    """Arguments of a regression on files: one label is 1e30, and its square is inf."""
    folder = tmp_path_factory.mktemp("explosive")
    labels = {"train": 64, "calibration": 32, "validation": 32}
    flags = []
    for name, n in labels.items():
        rows = [{"text": f"number {i}", "label": i % 5 + 0.5} for i in range(n)]
        if name == "train":
            rows[BAD]["label"] = 1e30
        flags.append(f"--config.data.{name}={write(folder / f'{name}.csv', rows)}")
    return (
        "train",
        "--config=files:method=lora",
        "--config.model.path=random:tiny",
        "--config.data.max_length=48",
        "--config.data.pad_to_max=True",
        "--config.optim.batch_size=16",
        "--config.optim.num_epochs=2",
        "--config.ckpt.every_steps=1",
        *flags,
    )


BAD = 37


@pytest.mark.fault(
    "a loss or gradient of inf or NaN", "stops with step, ids, checkpoint"
)
def test_a_loss_that_is_not_finite_names_step_ids_and_checkpoint(explosive, tmp_path):
    done = process.run(*explosive, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr[-2000:]
    line = last_line(done.stderr)
    found = re.search(r"not finite at step (\d+) \(ids ([^)]*)\); (.*)\. Look", line)
    step, ids = int(found[1]), found[2].split(", ")
    assert len(ids) == 16 and str(BAD) in ids
    good = f"the last good checkpoint is step {step - 1}"
    assert found[3] == (good if step > 1 else "no checkpoint yet")


@pytest.mark.soak  # in short: tests/train/test_divergence.py
@pytest.mark.fault("the same, optim.skip_nonfinite=N", "passes over N such steps a run")
def test_steps_that_are_not_finite_are_skipped_if_asked(explosive, tmp_path):
    workdir = tmp_path / "run"
    flag = "--config.optim.skip_nonfinite=2"
    done = process.run(*explosive, flag, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "skipped, 1 of at most 2" in done.stderr
    assert "skipped, 2 of at most 2" in done.stderr
    metrics = json.loads((workdir / "eval/validation/metrics.json").read_text())
    assert 0 < metrics["mse"] < 100


@pytest.mark.parametrize("damage", ["", "{", "[1]"])
def test_a_damaged_config_json_is_named(tmp_path, damage, capsys):
    (tmp_path / "config.json").write_text(damage)
    assert cli.main(["evaluate", f"--workdir={tmp_path}"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_commands_on_a_folder_without_a_run(tmp_path, capsys):
    for command in ("evaluate", "predict", "report"):
        assert cli.main([command, f"--workdir={tmp_path}"]) == 2
        assert "has no config.json" in capsys.readouterr().err


def test_rows_after_the_checkpoint_and_half_rows_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert rows_until(path, 2) == [{"step": 1}, {"step": 2}]
    assert rows_until(tmp_path / "none", 2) == []


def write(path, rows):
    """The rows as a file of the format its suffix names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        sep = "," if path.suffix == ".csv" else "\t"
        lines = [sep.join(rows[0])]
        lines += [sep.join(f'"{v}"' for v in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    return path


CASES = {  # suffix: (text column, second text, label column, labels, flags)
    ".csv": ("text", None, "label", ("bad", "good"), ()),
    ".tsv": ("sentence1", "sentence2", "label", (0, 1), ()),
    ".jsonl": ("premise", "hypothesis", "label", ("no", "yes"), ()),
    ".parquet": (
        "words",
        None,
        "mood",
        (3, 7),
        ("--config.data.text=words", "--config.data.label=mood"),
    ),
}


@pytest.mark.parametrize("suffix", CASES)
def test_own_data_from_files_to_predictions(suffix, tmp_path, capsys, monkeypatch):
    text, text_b, label, labels, flags = CASES[suffix]
    words = (("dull", "poor", "weak"), ("fine", "bright", "warm"))

    def make(name, n):
        rows = []
        for i in range(n):
            y = i % 2
            row = {text: f"a {words[y][i % 3]} film, number {i}"}
            if text_b:
                row[text_b] = f"the {words[y][i % 2]} one"
            rows.append(row | {label: labels[y]})
        return write(tmp_path / f"{name}{suffix}", rows)

    workdir = tmp_path / "run"
    argv = [
        "train",
        "--config=files:method=lora",
        f"--config.data.train={make('train', 64)}",
        f"--config.data.validation={make('validation', 32)}",
        "--config.model.path=random:tiny",
        "--config.data.max_length=48",
        "--config.data.pad_to_max=True",
        "--config.optim.num_epochs=1",
        f"--workdir={workdir}",
        *flags,
    ]
    assert cli.main(argv) == 0, capsys.readouterr().err
    capsys.readouterr()
    metrics = json.loads((workdir / "eval/validation/metrics.json").read_text())
    assert metrics["n"] == 32 and metrics["num_classes"] == 2
    line = {"text": "a fine film", "id": 5} | (
        {"text_b": "the warm one"} if text_b else {}
    )
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(line) + "\n")
    argv = [
        "predict",
        f"--workdir={workdir}",
        f"--input={source}",
        f"--output={target}",
    ]
    assert cli.main(argv) == 0, capsys.readouterr().err
    answer = json.loads(target.read_text())
    assert answer["id"] == 5 and answer["label"] in map(str, labels)
    assert answer["confidence"] == max(answer["probs"].values())
    assert sum(answer["probs"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "line, part",
    [
        ("{", "input line 2: the line is not JSON"),
        ("[]", "input line 2: the line is a JSON list; expected one object"),
        ("{}", "input line 2: 'text' is None"),
        ('{"text": ""}', "input line 2: 'text' is ''"),
        ('{"text": 3}', "input line 2: 'text' is 3"),
    ],
)
def test_a_bad_line_to_predict_is_named_and_those_before_it_are_answered(
    line, part, trained, tmp_path, capsys
):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "fine"}\n' + line + "\n")
    assert cli.main(["predict", f"--workdir={trained}", f"--input={source}"]) == 2
    out, err = capsys.readouterr()
    assert part in last_line(err) and json.loads(out)["text"] == "fine"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    done = process.run("train", *process.TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir
