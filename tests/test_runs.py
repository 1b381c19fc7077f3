"""Whole runs in this process: seeds, regression, early stopping, files that agree."""

import dataclasses
import json

import numpy as np
import pytest

import hypelora_jax
from hypelora_jax import cli, objectives
from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.commands import train as runs
from hypelora_jax.config.settings import Settings, from_dict
from hypelora_jax.data.batches import eval_batches
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import (
    calibration_split,
    evaluation,
    recalibration,
)
from hypelora_jax.report import comparison, series
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train import scoring
from hypelora_jax.train import session as session_lib

FEW = {
    "model": {"path": "random:tiny"},
    "data": {"source": "synthetic", "num_examples": 64, "max_length": 32},
    "hyper": {"widths": (16,), "cond_dim": 8},
    "lora": {"rank": 2},
    "optim": {"num_epochs": 2, "batch_size": 32, "lr": 3e-3},
    "log": {"every_steps": 1},
}


def few(**sections) -> Settings:
    merged = dict(FEW)
    for name, value in sections.items():
        merged[name] = FEW.get(name, {}) | value if isinstance(value, dict) else value
    return from_dict(merged)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    summary = runs.train(few(num_seeds=2, seed=3), str(workdir), progress=False)
    return workdir, summary


def rows(workdir, split):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["split"] == split]


def test_num_seeds_makes_whole_run_folders_and_their_mean(finished):
    workdir, summary = finished
    values = []
    for i in range(2):
        own = workdir / f"seed_{i}"
        record = json.loads((own / "config.json").read_text())
        assert record["seed"] == record["config"]["seed"] == 3 + i
        assert record["versions"]["jax"] and record["device_kind"]
        held = json.loads((own / "summary.json").read_text())
        values.append(held["metrics"]["validation"]["nll"])
        assert list((own / "tb").iterdir()) and (own / "report").exists()
    assert values[0] != values[1]
    assert "2 seeds" in (workdir / "report" / "report.html").read_text()
    saved = json.loads((workdir / "summary.json").read_text())
    assert saved == json.loads(json.dumps(summary))
    assert saved["mean"]["validation"]["nll"] == pytest.approx(np.mean(values))
    assert saved["std"]["validation"]["nll"] == pytest.approx(np.std(values, ddof=1))


def test_rows_of_metrics_hold_what_readers_expect(finished):
    own = finished[0] / "seed_0"
    train = rows(own, "train")
    assert [r["step"] for r in train] == [1, 2, 3, 4]
    assert [r["epoch"] for r in train] == [1, 1, 2, 2]
    names = {"loss", "lr", "alpha", "grad_norm", "examples_per_s", "tokens_per_s"}
    assert names <= set(train[0])
    for split in ("calibration", "validation"):
        assert [r["step"] for r in rows(own, split)] == [2, 4]
        assert {"nll", "ece", "accuracy", "brier"} <= set(rows(own, split)[0])
        assert set(metrics.SOFT) <= set(rows(own, split)[0]), "the source has shares"


def test_shares_of_raters_reach_metrics_files_and_reports(finished, capsys):
    own = finished[0] / "seed_0"
    held = json.loads((own / "eval/validation/metrics.json").read_text())
    file = own / "eval/validation/predictions.npz"
    assert cli.main(["metrics", f"--predictions={file}"]) == 0
    raw = json.loads(capsys.readouterr().out)  # of raw logits: T = 1
    for name in (*metrics.SOFT, "nll", "ece"):
        assert raw[name] == held["uncalibrated"][name] > 0
    assert held["soft_tv"] != raw["soft_tv"]
    view = series.load(own)
    for stage, wanted in (("as trained", raw), ("calibrated", held)):
        cells = comparison.compare([view], "validation", stage, replicas=4)[0].cells
        for name in metrics.SOFT:
            assert cells[name].value == wanted[name] < cells[name].high
    result = recalibration.calibrate(str(own), "vector")
    again = json.loads((own / "eval/validation/metrics.json").read_text())
    assert again["soft_tv"] == result["after"]["soft_tv"]["value"] != held["soft_tv"]
    recalibration.calibrate(str(own))  # as it was, for the other tests


def test_shares_of_rows_without_a_label_are_left_out():
    soft = np.array([[0.5, 0.5], [np.nan, np.nan], [1.0, 0.0]])
    rows, label = np.log([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]]), np.array([0, -1, 0])
    task = Task("t", "classification", ("a", "b"), (), False)
    state = calibrators.Temperature(1.0)
    held = calibration_split.judge(objectives.of(task), rows, label, state, 1.0, soft)
    assert held["soft_tv"] == pytest.approx(0.1, abs=1e-12)
    assert held["uncalibrated"]["soft_tv"] == held["soft_tv"]
    assert calibration_split.of_classes(rows, label, soft).soft.tolist() == [
        [0.5, 0.5],
        [1.0, 0.0],
    ]


def test_evaluate_gives_again_what_training_ended_with(finished):
    own = finished[0] / "seed_1"
    before = json.loads((own / "eval/validation/metrics.json").read_text())
    again = evaluation.evaluate(str(own), "validation")
    assert again.keys() == before.keys()
    for name in ("nll", "ece", "accuracy", "temperature"):
        assert again[name] == pytest.approx(before[name], abs=1e-6)
    best = min(rows(own, "calibration"), key=lambda r: r["nll"])
    assert again["step"] == best["step"], "chosen by NLL on the calibration split"
    assert again["uncalibrated"]["nll"] == pytest.approx(
        next(r for r in rows(own, "validation") if r["step"] == best["step"])["nll"],
        abs=1e-6,
    )


def test_predict_agrees_with_evaluate(finished, tmp_path, capsys):
    own = finished[0] / "seed_0"
    corpus = session_lib.load_corpus(
        records.settings_of(records.read_record(Run.open(own)))
    )
    table = corpus.splits["validation"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in table.text[:20]))
    capsys.readouterr()
    assert cli.main(["predict", f"--workdir={own}", f"--input={source}"]) == 0
    answers = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    with np.load(own / "eval/validation/predictions.npz") as z:
        logits = z["logits"][:20].astype(np.float64)
    t = json.loads((own / "calibrator.json").read_text())["temperature"]
    p = np.exp(logits / t - (logits / t).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    got = [[a["probs"][name] for name in corpus.task.labels] for a in answers]
    np.testing.assert_allclose(got, p, atol=1e-5)


def test_seed_scope_init_shares_data_order_and_dropout():
    one, two = (session_lib.keys(few(seed=s, seed_scope="init")) for s in (1, 2))
    assert one.data == two.data and one.train == two.train and one.init != two.init
    one, two = (session_lib.keys(few(seed=s)) for s in (1, 2))
    assert one.data != two.data and one.train != two.train


def test_regression_selects_by_squared_error_and_predicts_a_score(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, n in (("train", 220), ("validation", 40)):
        lines = ["sentence1,sentence2,label"]
        lines += [f"a {i} film,the {i} one,{rng.uniform(0, 5):.2f}" for i in range(n)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    workdir = tmp_path / "run"
    data = {"train": str(tmp_path / "train.csv"), "num_examples": 64}
    data["validation"] = str(tmp_path / "validation.csv")
    settings = few(data=data | {"source": "files"}, method="lora")
    summary = runs.train(settings, str(workdir), progress=False)
    assert summary["selection_metric"] == "mse" and summary["temperature"] is None
    assert {"mse", "pearson", "spearman"} <= set(summary["metrics"]["validation"])
    assert not (workdir / "calibrator.json").exists()
    best = min(rows(workdir, "calibration"), key=lambda r: r["mse"])
    assert summary["step"] == best["step"]
    (answer,) = hypelora_jax.load(str(workdir)).predict([("a 3 film", "the 3 one")])
    assert answer["label"] == answer["score"] and isinstance(answer["score"], float)


def test_early_stopping_ends_training(tmp_path):
    settings = few(optim={"num_epochs": 6, "patience": 1, "lr": 0.0}, method="head")
    summary = runs.train(settings, str(tmp_path / "run"), progress=False)
    assert summary["epochs"] == 2, "with a rate of 0 the second epoch is no better"


def test_bucketed_equals_padded_to_max():
    settings = few(method="hyper_mlp")
    corpus = session_lib.load_corpus(settings)
    session = session_lib.open_session(settings, corpus.task)
    data = session_lib.with_data(session, corpus).datasets["validation"]
    forward = scoring.forward(session.model, session.mesh)
    params = session.trainable, session.frozen, np.zeros((), np.float32)
    bucketed, padded = (
        scoring.logits(forward, *params, eval_batches(data, edges, 32), len(data.ids))
        for edges in ((16, 24, 32), (32,))
    )
    np.testing.assert_allclose(bucketed, padded, atol=1e-5)


def test_a_max_length_beyond_the_model_is_refused(tmp_path):
    settings = few(data={"max_length": 4096})
    with pytest.raises(ValueError, match="data.max_length is 4096"):
        runs.train(settings, str(tmp_path / "run"), progress=False)


def test_settings_survive_config_json():
    settings = few(hyper={"layers": (0, 1)}, lora={"targets": "all-linear"})
    assert from_dict(records.as_dict(settings)) == settings
    assert dataclasses.asdict(settings)["hyper"]["layers"] == (0, 1)


def test_a_folder_of_seeds_and_one_of_a_run_refuse_each_other(finished, tmp_path):
    workdir, summary = finished
    with pytest.raises(UserError, match="several seeds"):
        runs.train(few(seed=3), str(workdir), progress=False)
    with pytest.raises(UserError, match="one seed"):
        runs.train(few(num_seeds=2), str(workdir / "seed_0"), progress=False)
    with pytest.raises(UserError, match="num_seeds is 2 there and 3 here"):
        runs.train(few(num_seeds=3, seed=3), str(workdir), progress=False)
    again = runs.train(few(num_seeds=2, seed=3), str(workdir), progress=False)
    assert again == json.loads(json.dumps(summary))


@pytest.mark.parametrize(
    "sections, part",
    [
        ({"log": {"every_steps": 0}}, "log.every_steps is 0"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**40}, "below 2"),
        ({"optim": {"patience": -1}}, "patience is -1"),
        ({"optim": {"warmup": 2.0}}, "optim.warmup is 2.0; expected at most 1$"),
        ({"optim": {"b2": 2.0}}, "optim.b2 is 2.0; expected at most 1$"),
        (
            {"optim": {"lr": 0.0, "trunk_lr": 0.1}},
            "optim.trunk_lr is 0.1, but config.optim.lr is 0.0; expected lr above 0",
        ),
        ({"optim": {"lr": float("inf")}}, "finite"),
        ({"data": {"max_examples": -5}}, "max_examples is -5"),
        ({"lora": {"targets": ("q", 5)}}, "expected names"),
    ],
)
def test_values_that_make_no_sense_are_refused(sections, part):
    with pytest.raises(UserError, match=part):
        few(**sections)


def test_a_record_older_than_a_field_has_its_default(tmp_path):
    record = {"config": records.as_dict(few())}
    del record["config"]["uncertainty"]
    records.check_same(tmp_path, few(), record)
    other = few(uncertainty={"kind": "mc_dropout"})
    with pytest.raises(UserError, match="uncertainty.kind is 'none' there and 'mc_dr"):
        records.check_same(tmp_path, other, record)


@pytest.mark.parametrize(
    ("field", "before"), [("masks", "threefry"), ("attention", "xla")]
)
def test_a_run_older_than_a_way_to_compute_goes_on_as_it_began(
    tmp_path, caplog, field, before
):
    record = {"config": records.as_dict(few())}
    del record["config"]["model"][field]
    assert getattr(few().model, field) == "auto"
    with caplog.at_level("INFO", "absl"):
        settings = records.check_same(tmp_path, few(), record)
    assert getattr(settings.model, field) == before
    said = [x.getMessage() for x in caplog.records]
    assert said == [f"config.model.{field} is {before}, as when the run was begun"]


def test_a_run_older_than_the_whitening_goes_on_without(tmp_path):
    now = few(condition={"source": "noise", "whiten": True})
    record = {"config": records.as_dict(now)}
    del record["config"]["condition"]["whiten"]
    assert not records.check_same(tmp_path, now, record).condition.whiten


def test_a_run_with_the_sign_of_an_older_version_is_refused():
    record = {"config": records.as_dict(few(condition={"sign": 5}))}
    assert records.settings_of(record).condition.sign == 5
    del record["config"]["condition"]["whiten"]
    with pytest.raises(UserError, match="condition.sign by an older version"):
        records.settings_of(record)


def test_a_run_of_a_fused_kernel_is_evaluated_on_any_device():
    trained = few(model={"attention": "fused", "attention_dropout": 0.0})
    settings = evaluation._anywhere(trained)
    assert settings.model.attention == "auto"
    assert settings.model.attention_dropout == 0.0
    assert evaluation._anywhere(few()) == few()


def test_a_run_older_than_the_rate_of_the_trunk_goes_on_with_its_own(tmp_path, caplog):
    now = few(optim={"trunk_lr": 1e-4})
    record = {"config": records.as_dict(few())}
    del record["config"]["optim"]["trunk_lr"]
    with caplog.at_level("INFO", "absl"):
        assert records.check_same(tmp_path, now, record) == few()
        assert records.check_same(tmp_path, few(), record) == few()
    said = [x.getMessage() for x in caplog.records]
    assert said == ["config.optim.trunk_lr is 0.0, as when the run was begun"]
    record = {"config": records.as_dict(few())}
    with pytest.raises(
        UserError, match="is 0.0 there and 0.0001 here; give 0.0 to continue"
    ):
        records.check_same(tmp_path, now, record)


def test_a_models_folder_is_no_workdir(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="not the config.json of a run"):
        runs.train(few(), str(tmp_path), progress=False)


def test_changed_data_is_refused_on_resume(tmp_path):
    workdir, train = tmp_path / "run", tmp_path / "train.csv"
    lines = ["text,label"] + [
        f"film {i},{'good' if i % 2 else 'bad'}" for i in range(220)
    ]
    train.write_text("\n".join(lines) + "\n")
    data = {"source": "files", "train": str(train), "num_examples": 64}
    settings = few(data=data, method="head")
    runs.train(settings, str(workdir), progress=False)
    (workdir / "summary.json").unlink()
    train.write_text("\n".join(lines + lines[1:]) + "\n")
    with pytest.raises(UserError, match="the data has changed"):
        runs.train(settings, str(workdir), progress=False)
