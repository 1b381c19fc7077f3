"""Whole runs of ensembles: their files, the commands that read them, the table."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from uncertain import K, few, opened, softmax, with_kind

import hypelora_jax
from hypelora_jax.commands import train as runs
from hypelora_jax.evaluate import averaging, evaluation
from hypelora_jax.train import session as session_lib


@pytest.fixture(scope="module")
def hyper_ensemble(tmp_path_factory):
    """A whole run whose members have learned enough to differ."""
    workdir = tmp_path_factory.mktemp("uncertainty") / "run"
    settings = few(optim={"lr": 3e-2, "num_epochs": 16}, data={"num_examples": 128})
    settings = with_kind(settings, "hyper_ensemble")
    return workdir, runs.train(settings, str(workdir), progress=False)


def test_a_hyper_ensembles_members_differ_and_share_one_network(hyper_ensemble):
    workdir, summary = hyper_ensemble
    assert summary["metrics"]["validation"]["uncertainty"]["members"] == K
    with np.load(workdir / "eval/validation/predictions.npz") as held:
        a, b, c = softmax(held["member_logits"])
    apart = [np.abs(x - y).max() for x, y in ((a, b), (b, c), (a, c))]
    assert min(apart) > 1e-3, "each was trained to be another model"
    run = evaluation.open_fitted(str(workdir))
    sizes = {n: averaging.trees.count(x) for n, x in run.trainable.items()}
    alone, _ = opened(few())
    wanted = {n: averaging.trees.count(x) for n, x in alone.trainable.items()}
    assert sizes.pop("cond") == K * wanted.pop("cond") and sizes == wanted
    assert summary["trained_parameters"] == averaging.trees.count(run.trainable)


def test_files_evaluate_and_predict_agree_about_the_average(hyper_ensemble):
    workdir, summary = hyper_ensemble
    with np.load(workdir / "eval/validation/predictions.npz") as held:
        own_KNY, logits = held["member_logits"], held["logits"]
    assert own_KNY.shape == (K, *logits.shape)
    mean_NY = softmax(own_KNY).mean(axis=0)
    np.testing.assert_allclose(softmax(logits), mean_NY, atol=1e-6)
    before = summary["metrics"]["validation"]
    again = evaluation.evaluate(str(workdir), "validation")
    assert again["nll"] == pytest.approx(before["nll"], abs=1e-6)
    assert again["uncertainty"] == before["uncertainty"]
    run = evaluation.open_fitted(str(workdir))
    table = session_lib.load_corpus(run.session.settings).splits["validation"]
    answers = hypelora_jax.load(str(workdir)).predict(table.text[:8])
    wanted = softmax(logits[:8] / run.calibrator.temperature)
    got = [[a["probs"][name] for name in run.session.task.labels] for a in answers]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.fixture
def experiment():
    """The module experiments/uncertainty.py."""
    path = Path(__file__).parents[2] / "experiments/uncertainty.py"
    spec = importlib.util.spec_from_file_location("uncertainty_experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_of_the_table_is_the_runs_averaged_test_split(experiment, hyper_ensemble):
    workdir, summary = hyper_ensemble
    row = experiment.row(workdir, summary)
    judged = summary["metrics"]["test"]
    assert row["calibrated"]["nll"]["value"] == pytest.approx(judged["nll"], abs=1e-6)
    before = judged["uncalibrated"]["nll"]
    found = row["averaged"]["nll"]
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(before, abs=1e-6)
    for name in ("members", "disagreement"):
        assert row["averaged"][name] == judged["uncertainty"][name]
    assert row["averaged"]["trained_parameters"] == summary["trained_parameters"]
    assert set(experiment.TRAINED) | set(experiment.AFTERWARDS) == set(experiment.ORDER)


@pytest.mark.soak
def test_the_tables_command_makes_all_rows(experiment, tmp_path):
    overrides = ["--config.data.num_examples=64", "--config.optim.num_epochs=1"]
    made = experiment.table("smoke", overrides, 2, tmp_path)
    assert [row[0] for row in made[0].rows] == list(experiment.ORDER)
    written = json.loads((tmp_path / "uncertainty.json").read_text())
    assert set(written) == set(experiment.ORDER)
    again = experiment.table("smoke", overrides, 2, tmp_path)
    assert again == made, "finished runs are kept"


@pytest.mark.soak
def test_a_deep_ensemble_run_equals_its_seeds_run_alone(tmp_path):
    """The whole of training from the command's settings on, the golden base model."""
    base = Path(__file__).parents[1] / "golden/base"
    settings = few(model={"path": str(base)}, method="lora", seed_scope="init", seed=4)
    whole = with_kind(settings, "deep_ensemble")
    whole = dataclasses.replace(whole, select_on="last")
    runs.train(whole, str(tmp_path / "ensemble"), progress=False)
    with np.load(tmp_path / "ensemble/eval/validation/predictions.npz") as held:
        own_KNY = held["member_logits"]
    step = evaluation.open_fitted(str(tmp_path / "ensemble")).step
    for k in range(K):
        alone = dataclasses.replace(settings, seed=4 + k, select_on="last")
        workdir = tmp_path / f"alone_{k}"
        runs.train(alone, str(workdir), progress=False)
        assert evaluation.open_fitted(str(workdir)).step == step, "compared at one step"
        with np.load(workdir / "eval/validation/predictions.npz") as held:
            np.testing.assert_allclose(own_KNY[k], held["logits"], atol=1e-5)
