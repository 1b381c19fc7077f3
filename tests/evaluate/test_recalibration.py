"""Calibrators and sets of a trained run: calibrate, evaluate, predict, their files."""

import json
import shutil

import numpy as np
import pytest

from hypelora_jax import cli
from hypelora_jax.calibration import calibrators, conformal, metrics
from hypelora_jax.commands import train as runs
from hypelora_jax.config.settings import from_dict
from hypelora_jax.data import npz
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import (
    calibration_split,
    evaluation,
    file_calibration,
    file_metrics,
    recalibration,
)
from hypelora_jax.run import calibrator, prediction_files, results
from hypelora_jax.run.paths import Run

NAMES = [name for name in calibrators.CALIBRATORS if name != "identity"]
SETTINGS = {
    "method": "head",
    "model": {"path": "random:tiny"},
    "data": {"source": "synthetic", "num_classes": 3, "num_examples": 64},
    "optim": {"num_epochs": 1, "batch_size": 32, "lr": 3e-3},
    "loss": {"temperature": "learned"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    runs.train(from_dict(SETTINGS), str(workdir), progress=False)
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def read(run, split="validation"):
    return json.loads((run / "eval" / split / "metrics.json").read_text())


def arrays(run, split="validation"):
    held = npz.read(run / "eval" / split / "predictions.npz")
    return held["logits"].astype(np.float64), held["labels"]


def test_training_ends_with_a_temperature_and_tells_of_sets(run):
    held = read(run)
    state = calibrator.read(Run.open(run))
    assert held["temperature"] == state.temperature
    assert held["uncalibrated"]["temperature"] != state.temperature
    sets = held["conformal"]
    assert sets["wanted"] == 0.9 and sets["n"] == held["n"]
    assert sets["n_calibration"] == read(run, "calibration")["n"]
    assert {*conformal.SETS, "thr_by_class"} < set(sets)
    assert "conformal" not in read(run, "calibration")


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_calibrate_rewrites_what_rests_on_it(method, run, capsys):
    check_rewritten(method, run, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("method", NAMES)
def test_every_method_rewrites_what_rests_on_it(method, run, capsys):
    check_rewritten(method, run, capsys)


def check_rewritten(method, run, capsys):
    before = read(run)
    assert cli.main(["calibrate", f"--workdir={run}", f"--method={method}"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    state = calibrator.read(Run.open(run))
    assert calibrators.kind(state) == printed["method"] == method
    assert printed["calibrator"] == calibrators.describe(state)
    logits, labels = arrays(run)
    wanted = metrics.compute_all(calibrators.apply(state, logits), labels)
    after = read(run)
    for name in ("n", "nll", "ece", "accuracy", "brier"):
        assert after[name] == wanted[name]
    assert after["uncalibrated"] == before["uncalibrated"]
    assert ("temperature" in after) == (method == "temperature")
    assert after.get("calibrator") == (None if method == "temperature" else method)
    for name in ("step", "split"):
        assert after[name] == before[name]
    again = evaluation.evaluate(str(run), "validation")  # from the model, not the file
    assert again.keys() == after.keys()
    assert again["nll"] == pytest.approx(after["nll"], abs=1e-6)
    assert again["conformal"]["thr"] == after["conformal"]["thr"]


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_file_of_predictions_is_calibrated_as_its_run(method, run, tmp_path):
    recalibration.calibrate(str(run), method)
    state = calibrator.read(Run.open(run))
    out, files = tmp_path / "out.npz", run / "eval"
    own = [files / split / "predictions.npz" for split in ("calibration", "validation")]
    got = file_calibration.calibrate(str(own[0]), method, str(own[1]), str(out))
    assert got["state"] == json.loads(calibrators.to_json(state))
    logits, labels = arrays(run)
    found = npz.read(out)
    np.testing.assert_array_equal(found["probs"], calibrators.apply(state, logits))
    np.testing.assert_array_equal(found["labels"], labels)
    of_run, of_file = read(run), file_metrics.metrics_of_file(out)
    assert of_file == {name: of_run[name] for name in of_file}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_predict_writes_is_judged_and_calibrated(suffix, run, tmp_path):
    labels = evaluation.open_fitted(str(run)).session.task.labels
    true, given = [labels[i % 3] for i in range(30)] + [None], tmp_path / "in.jsonl"
    rows = [{"text": f"badu {i}", "label": y} for i, y in enumerate(true)]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, new = tmp_path / f"out{suffix}", tmp_path / f"new{suffix}"
    flags = [f"--workdir={run}", f"--input={given}", f"--output={out}"]
    assert cli.main(["predict", *flags]) == 0
    held = prediction_files.contents(out)
    assert held.classes == labels
    assert list(held.labels) == [i % 3 for i in range(30)] + [-1]
    fitted = file_calibration.calibrate(str(out), "identity", str(out), str(new))
    assert fitted["after"]["n"] == 30
    first, again = (path.read_text().splitlines()[0] for path in (out, new))
    if suffix == ".csv":
        assert first == again, "the columns are those of predict, in its order"
    np.testing.assert_allclose(prediction_files.read(new).probs, held.probs[:30])


def test_calibrate_shows_before_and_after(run, capsys):
    t = calibrators.describe(calibrator.read(Run.open(run)))
    assert cli.main(["calibrate", f"--workdir={run}", "--method=vector"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert (result["was"], result["calibrator"]) == (t, "vector")
    assert max(map(len, out.splitlines()[:-1])) <= 80
    for name in recalibration.SHOWN:
        before, after = result["before"][name], result["after"][name]
        assert before["low"] <= before["value"] <= before["high"]
        change = result["difference"][name]
        assert change["value"] == pytest.approx(after["value"] - before["value"])
        assert f"{after['value']:.3f} [{after['low']:.3f}, {after['high']:.3f}]" in out
    assert {"n", "mce", "ece_debiased"} < set(result["after"])


def test_identity_is_back_to_no_calibrator(run):
    held = read(run)["uncalibrated"]
    result = recalibration.calibrate(str(run), "identity")
    assert (
        calibrator.read(Run.open(run)) is None
        and not (run / "calibrator.json").exists()
    )
    after = read(run)
    assert after["temperature"] == held["temperature"]
    for name in ("nll", "ece"):
        assert after[name] == result["after"][name]["value"] == held[name]
    assert results.read(Run.open(run)).train_temperature == held["temperature"]
    # what was not fitted on the split is exact on it: no cross-fitting
    logits, labels = arrays(run, "calibration")
    probs = calibrators.softmax(logits, held["temperature"])
    state = evaluation.open_fitted(str(run)).calibrator
    np.testing.assert_array_equal(
        calibrators.cross_fitted(state, logits, labels), probs
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"kind": "temperature", "temperature": "\xff"}', "not UTF-8"),
        (b"{", "calibrator is not JSON"),
        (b'{"kind": "magic"}', "calibrator has kind 'magic'"),
    ],
)
def test_a_broken_calibrator_is_one_line_with_its_file(text, message, run, capsys):
    (run / "calibrator.json").write_bytes(text)
    argv = [f"--workdir={run}", f"--output={run}/new.html", "--replicas=0"]
    assert cli.main(["report", *argv]) == 2
    err = capsys.readouterr().err
    assert f"{run}/calibrator.json: " in err and message in err
    assert err.count("\n") == 1 and err.endswith(f"calibrate --workdir={run}\n")
    with pytest.raises(UserError, match=message):
        calibrator.read(Run.open(run))


def test_saved_predictions_that_lack_an_array_are_one_line(run):
    file = run / "eval" / "calibration" / "predictions.npz"
    np.savez(file, labels=np.array([0, 1]))
    with pytest.raises(UserError, match="npz has no logits; run hypelora evaluate"):
        calibration_split.examples(Run.open(run))
    np.savez(file, labels=np.array([0, 1]), logits=np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"'labels': \[2\]\}; expected logits and soft"):
        calibration_split.examples(Run.open(run))


def test_calibrate_evaluates_what_is_missing(run):
    shutil.rmtree(run / "eval")
    wanted = calibrator.read(Run.open(run))
    recalibration.calibrate(str(run))
    assert calibrator.read(Run.open(run)).temperature == pytest.approx(
        wanted.temperature, rel=1e-4
    )
    assert read(run)["n"] and read(run, "calibration")["n"]


def test_predict_emits_sets(run, tmp_path):
    lines = tmp_path / "in.jsonl"
    texts = [f"a text with the number {i}" for i in range(5)] + ["a text"] * 2
    lines.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    state = calibrator.read(Run.open(run))

    def answers(*flags):
        out = tmp_path / "out.jsonl"
        argv = ["predict", f"--workdir={run}", f"--input={lines}", f"--output={out}"]
        assert cli.main([*argv, *flags]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    assert all("set" not in row for row in answers())
    wanted = calibration_split.SetMaker(0.8)
    threshold = calibration_split.threshold(
        Run.open(run), evaluation.open_fitted(str(run)).session.task, state, wanted
    )
    for row in answers("--coverage=0.8"):
        inside = [k for k, p in row["probs"].items() if 1 - p <= threshold.score_Y[0]]
        assert row["set"] == sorted(inside, key=lambda k: -row["probs"][k])
    for kind in conformal.SETS:
        rows = answers("--coverage=0.99", f"--sets={kind}", "--by_class")
        assert rows[5]["set"] == rows[6]["set"], "equal texts, equal sets"
        assert np.mean([len(row["set"]) for row in rows]) > 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["predict", "--coverage=2"], "coverage is 2; expected above 0 and below 1"),
        (["predict", "--coverage=much"], "argument --coverage: invalid float value"),
        (["predict", "--coverage=0.9", "--sets=best"], "invalid choice: 'best'"),
        (["calibrate", "--method=magic"], "invalid choice: 'magic'"),
        (
            ["predict", "--sets=aps"],
            "--sets=aps chooses the kind of sets, but no sets are",
        ),
        (["predict", "--by_class"], "expected --coverage=0.9 as well"),
        (["metrics", "--level=0.9"], "which need replicas; expected"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, run, tmp_path, capsys):
    (tmp_path / "in").write_text("")
    own = {
        "predict": [f"--workdir={run}", f"--input={tmp_path}/in"],
        "calibrate": [f"--workdir={run}"],
        "metrics": [f"--predictions={run}/eval/validation/predictions.npz"],
    }[flags[0]]
    assert cli.main([flags[0], *own, *flags[1:]]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_sets_need_predictions_of_the_calibration_split(run):
    shutil.rmtree(run / "eval" / "calibration")
    task = evaluation.open_fitted(str(run)).session.task
    wanted = calibration_split.SetMaker(0.9)
    with pytest.raises(UserError, match="evaluate --workdir=.*--split=calibration"):
        calibration_split.threshold(
            Run.open(run), task, calibrator.read(Run.open(run)), wanted
        )


def test_a_regression_has_neither(run, trained):
    file = run / "config.json"
    record = json.loads(file.read_text())
    task = {"kind": "regression", "labels": [], "metrics": ["pearson"]}
    record["config"]["loss"]["temperature"] = 1.0  # a number has no temperature
    file.write_text(json.dumps(record | {"task": record["task"] | task}))
    with pytest.raises(UserError, match="predicts a number"):
        recalibration.calibrate(str(run))
    number = evaluation.open_fitted(str(trained)).session.task._replace(
        kind="regression", labels=()
    )
    with pytest.raises(UserError, match="coverage=0.9 asks for sets of classes"):
        calibration_split.threshold(
            Run.open(run),
            number,
            calibrator.read(Run.open(run)),
            calibration_split.SetMaker(0.9),
        )
