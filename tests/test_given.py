"""Conditions that come with the data, through the commands and from end to end."""

import json
import re
import shutil

import conditioned
import numpy as np
import process
import pytest
import serving
from conditioned import GIVEN, WIDTH

from hypelora_jax import cli
from hypelora_jax.calibration import calibrators
from hypelora_jax.errors import UserError
from hypelora_jax.inference import predictor
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.run.predictions import read

SHAPE = (
    "--config.data.max_length=16",
    "--config.data.pad_to_max=true",
    "--config.optim.lr=1e-2",
    "--config.log.every_steps=5",
)


def epochs(n):
    return f"--config.optim.num_epochs={n}"


def train(folder, kind, *flags, shuffle=False):
    """A run in folder/run on a corpus of its own."""
    data = conditioned.write(folder, kind, shuffle)
    assert cli.main(["train", *data, *SHAPE, *flags, f"--workdir={folder}/run"]) == 0
    return folder / "run"


def accuracy(run):
    return json.loads((run / "summary.json").read_text())["metrics"]["validation"][
        "accuracy"
    ]


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """A run on a corpus whose label the vector decides alone; 8 devices."""
    return train(tmp_path_factory.mktemp("decided"), "vector", *GIVEN, epochs(3))


def test_what_the_vector_decides_is_learned(decided):
    assert accuracy(decided) >= 0.95


@pytest.mark.soak  # in short: the test before it, on eight devices
def test_the_same_on_one_device(tmp_path):
    data = conditioned.write(tmp_path, "vector")
    run = tmp_path / "run"
    args = ("train", *data, *SHAPE, *GIVEN, epochs(3), f"--workdir={run}")
    done = process.run(*args, env=process.ENV | {"JAX_NUM_CPU_DEVICES": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert accuracy(run) >= 0.95


@pytest.mark.parametrize(
    "kind", [pytest.param("vector", marks=pytest.mark.soak), "xor"]
)
def test_vectors_of_other_rows_teach_nothing(kind, tmp_path):
    run = train(tmp_path, kind, *GIVEN, epochs(2), shuffle=True)
    assert 0.4 < accuracy(run) < 0.6


def test_text_and_vector_decide_together(tmp_path):
    joined = ("--config.condition.join=sum", "--config.optim.lr=2e-2")
    xor = train(tmp_path / "xor", "xor", *GIVEN, *joined, epochs(6))
    plain = ("--config.method=lora", epochs(2))
    text = train(tmp_path / "text", "text", *plain)
    assert accuracy(text) > 0.9
    assert accuracy(xor) >= 0.9 * accuracy(text)


def probabilities(answers):
    return np.array([list(one["probs"].values()) for one in answers])


def test_evaluate_predict_and_serve_give_the_same_numbers(decided, tmp_path, capsys):
    source = decided.parent / "validation.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    assert cli.main(["evaluate", f"--workdir={decided}"]) == 0
    held = read(Run.open(decided).predictions_file("validation"))
    model = predictor.load(str(decided), batch_sizes=(8,))
    wanted = calibrators.apply(model.fitted.calibrator, held.logits)
    out = tmp_path / "answers.jsonl"
    flags = (f"--workdir={decided}", f"--input={source}", f"--output={out}")
    assert cli.main(["predict", *flags]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    np.testing.assert_allclose(probabilities(found), wanted, atol=1e-6)
    texts = [row["text"] for row in rows[:20]]
    given = [row["condition"] for row in rows[:20]]
    inside = probabilities(model.predict(texts, np.array(given)))
    np.testing.assert_allclose(inside, wanted[:20], atol=1e-6)
    for wrong, line in (
        (None, "expected a list with one condition for each of the 20 texts"),
        (given[:3], "there are 20 texts but 3 conditions"),
        ([[1.0]] * 20, r"conditions\[0\]: the condition has shape \(1,\)"),
    ):
        with pytest.raises(UserError, match=line):
            model.predict(texts, wrong)
    asked = [{"text": t, "condition": c} for t, c in zip(texts, given, strict=True)]
    with serving.started(f"--workdir={decided}") as (_, port):
        status, answers = serving.ask(port, asked)
        assert status == 200
        np.testing.assert_allclose(probabilities(answers), wanted[:20], atol=1e-6)
        about = json.loads(serving.call(port, "GET", "/adapters")[2])
        assert about[0]["condition"] == [WIDTH]
        for wrong, line in (
            ({"text": "good"}, "the condition is missing"),
            ({"text": "good", "condition": [1.0]}, "has shape (1,); expected (6,)"),
            (
                {"text": "good", "condition": "film"},
                "expected a list of finite numbers",
            ),
        ):
            status, said = serving.ask(port, wrong)
            assert status == 422 and line in said["error"], said


@pytest.mark.soak  # in short: tests/train/test_resume.py, without conditions
@pytest.mark.fault("SIGKILL of a run with conditions", "goes on to the same bits")
def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    data = conditioned.write(tmp_path, "vector")
    more = (*SHAPE, *GIVEN, epochs(1), "--config.ckpt.every_steps=7")
    flags = ("train", *data, *more, "--config.condition.standardise=true")
    # step 14 is saved only when the save of step 7, in a thread, is complete
    splits = ("calibration", "validation")
    run, err = process.survives_a_kill(tmp_path, 15, splits, *flags)
    assert re.search("going on from step (7|14) of 20", err)
    record = records.read_record(Run.open(run))
    assert record["condition"]["shape"] == [WIDTH]
    assert record["condition"]["distinct"] == conditioned.SIZES["train"]


def test_other_vectors_are_refused_when_a_run_goes_on(decided, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(decided.parent, folder)
    (folder / "run" / "summary.json").unlink()
    path = folder / "train.jsonl"
    record = json.loads((folder / "run/config.json").read_text())
    assert record["task"]["condition"] == WIDTH
    text = path.read_text()
    first = json.loads(text.splitlines()[0])["condition"]
    path.write_text(text.replace(str(first[1]), "0.125", 1))
    moved = json.loads(json.dumps(record).replace(str(decided.parent), str(folder)))
    (folder / "run/config.json").write_text(json.dumps(moved))
    assert cli.main(["train", f"--workdir={folder}/run"]) == 2
    assert "the vectors that examples are conditioned on have changed" in (
        capsys.readouterr().err
    )


def test_rows_share_the_vectors_of_a_file_and_each_leaves_as_an_adapter(
    tmp_path, capsys
):
    flags = conditioned.with_ids(tmp_path)
    run = tmp_path / "run"
    assert cli.main(["train", *flags, *SHAPE, epochs(4), f"--workdir={run}"]) == 0
    assert accuracy(run) >= 0.95
    record = records.read_record(Run.open(run))
    assert record["condition"]["distinct"] == 2
    texts = tmp_path / "in.csv"
    texts.write_text("text,domain\nword 1,low\nword 1,high\n")
    flags = (f"--workdir={run}", f"--input={texts}", f"--output={tmp_path / 'out.csv'}")
    assert cli.main(["predict", *flags]) == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert "is_low" in lines[1] and "is_high" in lines[2]
    capsys.readouterr()
    assert cli.main(["export", f"--workdir={run}", f"--output={tmp_path / 'a'}"]) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["high", "low"]
    for name in ("low", "high"):  # an adapter of one condition is an ordinary run
        held = json.loads((tmp_path / "a" / name / "hypelora.json").read_text())
        assert held["condition"]["name"] == name
        assert len(held["condition"]["vector"]) == WIDTH
        own = tmp_path / f"imported_{name}"
        flags_in = (f"--adapter={tmp_path / 'a' / name}", f"--workdir={own}")
        assert cli.main(["import", *flags_in]) == 0
        (answer,) = predictor.load(str(own)).predict(["word 1"])
        assert answer["label"] == f"is_{name}"
    other = conditioned.npz(tmp_path / "other.npz", ("new",))
    more = (f"--output={tmp_path / 'b'}", f"--conditions={other}")
    assert cli.main(["export", f"--workdir={run}", *more]) == 0
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["new"]
    named = predictor.load(str(run))
    as_arrays = named.predict(["word 1", "word 1"], np.array(["low", "high"]))
    assert [one["label"] for one in as_arrays] == ["is_low", "is_high"]
    texts.write_text("text,domain\nword 1,middle\n")
    assert cli.main(["predict", *flags]) == 2
    assert "input line 2: the condition is 'middle'" in capsys.readouterr().err
    capsys.readouterr()
    conditioned.npz(tmp_path / "domains.npz", seed=3)
    texts.write_text("text,domain\nword 1,low\n")
    assert cli.main(["predict", *flags]) == 0
    assert "has changed since the run was trained" in capsys.readouterr().err
    np.savez(tmp_path / "narrow.npz", ids=["a"], vectors=np.ones((1, 3)))
    wrong = (f"--output={tmp_path / 'c'}", f"--conditions={tmp_path / 'narrow.npz'}")
    assert cli.main(["export", f"--workdir={run}", *wrong]) == 2
    err = capsys.readouterr().err
    assert "--conditions, a: the condition has shape (3,); expected (6,)" in err
    (tmp_path / "narrow.npz").rename(tmp_path / "domains.npz")
    assert cli.main(["predict", *flags]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "domains.npz: the condition has shape (3,); expected (6,)" in err


def test_a_vector_that_cannot_be_used_is_named_by_file_and_row(tmp_path, capsys):
    data = conditioned.write(tmp_path, "vector")
    path = tmp_path / "train.jsonl"
    lines = path.read_text().splitlines()
    good = json.loads(lines[2])

    def refused(*flags):
        args = ("train", *data, *GIVEN, *flags, f"--workdir={tmp_path / 'run'}")
        assert cli.main(list(args)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        return line

    text = "train.jsonl:3: the condition"
    for vector, wanted in (
        ([1.0] * 5, f"{text} has shape (5,); expected (6,)"),
        (None, f"{text} is missing"),
        ([1.0] * 5 + [float("inf")], f"{text} has a number"),
        ([1.0] * 5 + [float("nan")], "not finite"),
        ([1.0] * 5 + [1e300], f"{text} has a number that is not finite"),
        ([1.0] * 5 + ["x"], f"{text} is"),
        (["1.0"] * 6, f"{text} is"),
        ([True] * 6, f"{text} is"),
        ([[1.0], [1.0, 2.0]], f"{text} is"),
        ([], f"{text} is []; expected a list of finite numbers"),
        ("film", f"{text} is 'film'; expected a list of finite numbers, or an id"),
        ("[1, 2]", "which JSON lines and Parquet can hold"),
        ([[[1.0]]], f"{text} has shape (1, 1, 1)"),
    ):
        row = json.dumps(good | {"condition": vector})
        path.write_text("\n".join([*lines[:2], row, *lines[3:]]) + "\n")
        assert wanted in refused(), vector
    path.write_text("\n".join(lines) + "\n")
    line = refused("--config.condition.distinct=3")
    assert "distinct is 3, but train has 640 distinct conditions" in line
    line = refused("--config.condition.width=4")
    assert "train.jsonl:1: the condition has 6 numbers; expected 4" in line
    assert "no column 'nothing'" in refused("--config.data.condition=nothing")
    line = refused("--config.data.condition=")
    assert "needs a vector with each example" in line
    line = refused(f"--config.condition.file={tmp_path / 'none.npz'}")
    assert "none.npz does not exist" in line
    line = refused("--config.condition.join=replace")
    assert "leaves out what tells sites apart" in line
    for flags, wanted in (
        (("--config.condition.source=none",), "condition.source=none reads no"),
        (("--config.method=lora",), "method=lora has no hyper-network; leave them"),
        (("--config.condition.join=foo",), "condition.join is 'foo'; expected one of"),
    ):
        assert wanted in refused(*flags)
    for field in ("data.condition=condition", "condition.standardise=true"):
        args = ("train", *data, f"--config.{field}", f"--workdir={tmp_path / 'run'}")
        assert cli.main(list(args)) == 2
        assert "condition.source=none reads no" in capsys.readouterr().err


def test_vectors_for_slots_that_the_network_does_not_have(tmp_path, capsys):
    rows = conditioned.rows("vector", 400, 0)
    rows = [row | {"condition": [row["condition"]] * 3} for row in rows]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--config=files", "--config.model.path=random:tiny")
    args = ("train", *data, f"--config.data.train={path}", *GIVEN)
    assert cli.main([*args, f"--workdir={tmp_path / 'run'}"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has 3 vectors; expected one for each of the 4 slots" in line


@pytest.mark.parametrize(
    ("arrays", "wanted"),
    [
        ({"ids": ["a"]}, "vectors"),
        ({"ids": ["a", "b"], "vectors": [[1.0]]}, "ids (2,) and vectors (1, 1)"),
        ({"ids": ["a", "a"], "vectors": [[1.0], [2.0]]}, "the id 'a' twice"),
        ({"ids": ["a", "b"], "vectors": [[1.0], [np.nan]]}, "row 1 (id b)"),
        ({"ids": ["a"], "vectors": [["x"]]}, "expected one vector of numbers or more"),
        ({"ids": ["a"], "vectors": [[True]]}, "expected one vector of numbers or more"),
        ({"ids": np.zeros(0), "vectors": np.zeros((0, 4))}, "0 numbers in all"),
        ({"ids": ["a"], "vectors": [[1e300]]}, "row 0 (id a) has a number that is not"),
        (
            {"names": ["a"], "vectors": [[1.0]]},
            "has the arrays names, vectors but not",
        ),
    ],
)
def test_a_file_of_vectors_that_cannot_be_used_is_named(
    arrays, wanted, tmp_path, capsys
):
    flags = conditioned.with_ids(tmp_path)
    np.savez(tmp_path / "domains.npz", **{n: np.array(x) for n, x in arrays.items()})
    assert cli.main(["train", *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err.strip()
    assert wanted in err and "domains.npz" in err and err.count("\n") == 0, err


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY"])
def test_another_kind_of_file_is_refused(content, tmp_path, capsys):
    flags = conditioned.with_ids(tmp_path)
    (tmp_path / "domains.npz").write_bytes(content)
    assert cli.main(["train", *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "domains.npz is not an .npz file; expected" in capsys.readouterr().err
    with (tmp_path / "domains.npz").open("wb") as file:
        np.save(file, np.ones((2, 3)))
    assert cli.main(["train", *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "domains.npz is not an .npz file; expected" in capsys.readouterr().err


def test_a_width_that_a_file_does_not_have_is_refused(tmp_path, capsys):
    flags = (*conditioned.with_ids(tmp_path), "--config.condition.width=5")
    assert cli.main(["train", *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    assert (
        "domains.npz: the condition has 6 numbers; expected 5"
        in capsys.readouterr().err
    )


def test_a_file_of_pickles_is_refused(tmp_path, capsys):
    flags = conditioned.with_ids(tmp_path)
    np.savez(tmp_path / "domains.npz", ids=np.array([{}]), vectors=np.ones((1, 2)))
    assert cli.main(["train", *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "domains.npz" in capsys.readouterr().err


def test_a_file_goes_by_the_ids_of_examples_without_a_column(tmp_path, capsys):
    ids = np.arange(12_000)
    np.savez(tmp_path / "v.npz", ids=ids, vectors=np.ones((len(ids), 3)))
    given = (
        "--config.condition.source=given",
        f"--config.condition.file={tmp_path / 'v.npz'}",
        f"--workdir={tmp_path / 'run'}",
    )
    small = ("--config=smoke", "--config.data.num_examples=64")
    no_column = ("train", *small, *given, "--config.data.condition=vector")
    assert cli.main(list(no_column)) == 2
    assert "expected data.source=files" in capsys.readouterr().err
    files = conditioned.write(tmp_path, "vector")
    assert cli.main(["train", *files, *given]) == 2
    err = capsys.readouterr().err
    assert "both have the id 0" in err and "config.data.condition=COLUMN" in err
    assert cli.main(["train", *small, *given, *SHAPE[:2], epochs(1)]) == 0
    record = records.read_record(Run.open(tmp_path / "run"))
    assert record["condition"]["distinct"] == 1
