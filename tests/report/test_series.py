import json

import numpy as np
import pytest

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.errors import UserError
from hypelora_jax.report import html, metric_tables, series
from hypelora_jax.report.series import Series
from hypelora_jax.run import results
from hypelora_jax.run.paths import Run
from hypelora_jax.run.predictions import Predictions
from hypelora_jax.run.results import Results


def test_load_run(make_run):
    folder = make_run("lora")
    run = results.read(Run.open(folder))
    assert (run.name, run.config["method"]) == ("lora", "lora")
    state = calibrators.from_json((folder / "calibrator.json").read_text())
    assert run.calibrator == state and state.temperature == pytest.approx(2.5, rel=0.2)
    raw, calibrated = run.metrics["validation"], run.metrics["validation"]["calibrated"]
    held = series.examples(run, "validation")
    assert raw["ece"] == pytest.approx(metrics.ece(held.before, held.labels), abs=1e-6)
    after = metrics.ece(held.after, held.labels)
    assert calibrated["ece"] == pytest.approx(after, abs=1e-6)
    assert calibrated["nll"] < raw["nll"] and calibrated["ece"] < raw["ece"]
    assert raw["mcc"] == calibrated["mcc"] == 0.31
    assert (
        list(run.metrics)
        == list(run.predictions)
        == ["validation", "calibration", "test"]
    )
    assert list(held.ids[:2]) == [100, 101]
    assert len(run.curve) == 108 and run.best_step == 50  # end of epoch 2


def test_load_run_of_which_little_is_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run = results.read(Run.open(tmp_path))
    assert run.metrics == {} and run.predictions == {} and run.calibrator is None
    assert list(run.curve) == [] and run.best_step is None
    html.write_report([Series(run.name, (run,))], tmp_path / "report.html")
    assert "No data in these runs" in (tmp_path / "report.html").read_text()


def test_a_line_still_being_written_is_left_out(make_run):
    folder = make_run("lora")
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('{"step": 101, "los')
    assert len(results.read(Run.open(folder)).curve) == 108
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('\n{"step": 102}\n')
    with pytest.raises(UserError, match="metrics.jsonl:109: the line is not JSON"):
        results.read(Run.open(folder))


def test_best_step_follows_select_on(make_run):
    assert results.read(Run.open(make_run("last", select_on="last"))).best_step == 100
    by_score = make_run("by_score", select_on="validation_score")
    rows = [
        json.loads(x) for x in (by_score / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    rows = [row | {"mcc": {25: 0.1, 75: 0.3}.get(row["step"], 0.2)} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (by_score / "metrics.jsonl").write_text(lines)
    assert results.read(Run.open(by_score)).best_step == 75
    nested = make_run("nested")
    (nested / "config.json").write_text('{"config": {"select_on": "last"}}')
    assert results.read(Run.open(nested)).best_step == 100


def test_the_step_that_was_evaluated_is_the_chosen_one(make_run):
    folder = make_run("lora")
    file = folder / "eval" / "validation" / "metrics.json"
    file.write_text(json.dumps({"step": 75, **json.loads(file.read_text())}))
    assert results.read(Run.open(folder)).best_step == 75


def test_without_a_calibrator_there_is_no_after(make_run):
    folder = make_run("lora")
    (folder / "calibrator.json").unlink()
    file = folder / "eval" / "validation" / "metrics.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps({**held["uncalibrated"], "temperature": 1.5}))
    run = results.read(Run.open(folder))
    assert run.calibrator is None and run.train_temperature == 1.5
    assert "calibrated" not in run.metrics["validation"]
    assert len(metric_tables.before_after([run]).rows) == 1
    held, logits = (
        series.examples(run, "validation"),
        run.predictions["validation"].logits,
    )
    assert held.after is None and held.final is held.before
    wanted = calibrators.softmax(logits.astype(np.float64), 1.5)
    np.testing.assert_array_equal(held.before, wanted)


def test_a_learned_training_temperature_is_before(make_run):
    folder = make_run("lora")
    file = folder / "eval" / "validation" / "metrics.json"
    held = json.loads(file.read_text())
    held["uncalibrated"]["temperature"] = 1.5
    file.write_text(json.dumps(held))
    run = results.read(Run.open(folder))
    held, logits = (
        series.examples(run, "validation"),
        run.predictions["validation"].logits,
    )
    wide = logits.astype(np.float64)
    np.testing.assert_array_equal(held.before, calibrators.softmax(wide, 1.5))
    wanted = calibrators.softmax(wide, run.calibrator.temperature)
    np.testing.assert_array_equal(held.after, wanted)
    assert held.final is held.after
    same = run._replace(calibrator=calibrators.Temperature(1.5))
    assert series.examples(same, "validation").after is None
    none = run._replace(calibrator=calibrators.Identity(), train_temperature=1.0)
    assert series.examples(none, "validation").after is None


def test_rows_without_a_label_are_left_out():
    logits = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    arrays = {"test": Predictions(logits, np.array([1, -1, 0]), np.array([7, 8, 9]))}
    held = series.examples(Results("x", {}, {}, arrays), "test")
    assert held.labels.tolist() == [1, 0] and held.ids.tolist() == [7, 9]
    none = {"test": Predictions(logits, np.full(3, -1))}
    assert series.examples(Results("x", {}, {}, none), "test") is None
    assert series.examples(Results("x", {}, {}, none), "validation") is None


def test_load_run_refuses(tmp_path, make_run):
    with pytest.raises(UserError, match="has no config.json.*train a run"):
        results.read(Run.open(tmp_path / "absent"))
    (tmp_path / "many" / "seed_0").mkdir(parents=True)
    with pytest.raises(UserError, match="has no config.json.*seed_"):
        results.read(Run.open(tmp_path / "many"))
    folder = make_run("cut")
    (folder / "config.json").write_text('{"method"')
    with pytest.raises(UserError, match="config.json cannot be read"):
        results.read(Run.open(folder))
    (folder / "config.json").write_text("{}")
    np.savez(folder / "eval" / "validation" / "predictions.npz", labels=np.zeros(2))
    with pytest.raises(UserError, match="predictions.npz has no logits"):
        results.read(Run.open(folder))


def test_a_folder_of_seeds_is_one_method(make_seeds, make_run):
    folder = make_seeds("lora", [0.1] * 11)
    method = series.load(folder)
    assert method.name == "lora" and len(method.seeds) == 11
    assert [run.name for run in method.seeds[:3]] == ["seed_0", "seed_1", "seed_2"]
    assert [run.seed for run in method.seeds] == list(range(11))
    one = series.load(make_run("head"))
    assert one.name == "head" and len(one.seeds) == 1
    (folder / "seed_3" / "config.json").unlink()
    with pytest.raises(UserError, match="seed_3 has no config.json"):
        series.load(folder)


def test_runs_of_one_name_are_told_apart(make_run):
    paths = [make_run("cola/lora"), make_run("sst2/lora"), make_run("sst2/head")]
    names = [method.name for method in series.load_all(paths)]
    assert names == ["cola/lora", "sst2/lora", "sst2/head"]
    assert [m.name for m in series.load_all(paths[1:])] == ["lora", "head"]
    with pytest.raises(UserError, match="head is given twice"):
        series.load_all([paths[2], paths[0], str(paths[2])])
