"""What each kind predicts, on a small trained-or-not model and on whole runs."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.special
from test_runs import few

from hypelora_jax import evaluate, runs
from hypelora_jax.answers import predict_lines
from hypelora_jax.settings import Settings, UncertaintyConfig
from hypelora_jax.train import members, setup, validate
from hypelora_jax.types import UserError
from hypelora_jax.uncertainty import kinds

K = 3
ALPHA = np.zeros((), np.float32)


def with_kind(settings: Settings, kind: str, **fields) -> Settings:
    own = UncertaintyConfig(kind=kind, **{"samples": K, **fields})
    return dataclasses.replace(settings, uncertainty=own)


def opened(settings: Settings, shake: float = 0.3):
    """A model whose factors are not zero, and its validation split."""
    corpus = setup.load_corpus(settings)
    bench = setup.workbench(settings, corpus.task)
    plan = setup.plan(bench, corpus)
    leaves, structure = jax.tree.flatten(bench.trainable)
    draw = np.random.default_rng(0)
    noisy = [x + shake * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
    trainable = jax.tree.unflatten(structure, noisy)
    forward = validate.forward(bench.model, bench.mesh)
    chosen = kinds.Chosen(bench, forward, trainable, bench.frozen, ALPHA, plan.edges)
    return chosen, plan.datasets


@pytest.fixture(scope="module")
def plain():
    """An ordinary HypeLoRA model with random A, and what it predicts."""
    chosen, data = opened(few(hyper={"a": "random"}))
    return chosen, data, kinds.answerer(chosen)(data["validation"]).logits


def asked(plain, kind: str, **fields) -> kinds.Answer:
    chosen, data, _ = plain
    own = UncertaintyConfig(kind=kind, **{"samples": K, **fields})
    bench = kinds.chosen_afterwards(chosen.bench, own)
    return kinds.answerer(chosen._replace(bench=bench))(data["validation"])


def softmax(x):
    return scipy.special.softmax(x.astype(np.float64), axis=-1)


def test_none_is_the_ordinary_prediction(plain):
    chosen, data, logits = plain
    wanted = validate.split_logits(
        chosen.forward,
        chosen.trainable,
        chosen.frozen,
        ALPHA,
        data["validation"],
        chosen.edges,
        32,
    )
    assert logits.tobytes() == wanted.tobytes()
    assert asked(plain, "none").members is None


def test_mc_dropout_at_rate_0_is_the_plain_prediction_to_the_bit(plain):
    answer = asked(plain, "mc_dropout", dropout=0.0)
    assert len(answer.members) == K
    for own_NY in answer.members:
        np.testing.assert_array_equal(own_NY, plain[2])
    np.testing.assert_array_equal(answer.logits, plain[2])


def test_mc_dropout_averages_masks_that_differ_and_are_the_seeds(plain):
    answer = asked(plain, "mc_dropout", dropout=0.3)
    a, b, _ = answer.members
    assert np.abs(a - b).max() > 1e-3
    wanted = softmax(answer.members).mean(axis=0)
    np.testing.assert_allclose(softmax(answer.logits), wanted, atol=1e-6)
    again = asked(plain, "mc_dropout", dropout=0.3)
    assert again.members.tobytes() == answer.members.tobytes()
    chosen = plain[0]
    settings = dataclasses.replace(chosen.bench.settings, seed=1)
    other = chosen._replace(bench=chosen.bench._replace(settings=settings))
    other = asked((other, *plain[1:]), "mc_dropout", dropout=0.3)
    assert np.abs(other.members - answer.members).max() > 1e-3


def test_mc_dropout_by_default_takes_the_rates_of_training(plain):
    default = asked(plain, "mc_dropout")  # as 0.1, for this adapter has no dropout
    spread, wide = (
        np.abs(softmax(x.members) - softmax(plain[2])).mean()
        for x in (default, asked(plain, "mc_dropout", dropout=0.3))
    )
    assert 0 < spread < wide


def test_each_batch_has_masks_of_its_own(plain):
    chosen, data, _ = plain
    bench = kinds.chosen_afterwards(chosen.bench, UncertaintyConfig("mc_dropout", K))
    twice = {}
    for name in ("ids", "mask", "types"):
        (first, *_) = _batches(data["validation"], chosen.edges)
        twice[name] = first[name]
    draw = kinds.dropout.masks(bench.settings, bench.base.config, 2, bench.mesh)(0)
    params = kinds.trees.union(chosen.trainable, chosen.frozen)
    lora = draw.adapt(params, ALPHA)
    one, two = (np.asarray(draw.classify(params, lora, twice)) for _ in range(2))
    assert np.abs(one - two).max() > 1e-3


def _batches(data, edges):
    from hypelora_jax.data.pipeline import eval_batches

    return eval_batches(data, edges, 32)


def test_random_a_averages_draws_of_a_without_dropout(plain):
    answer = asked(plain, "random_a")
    a, b, c = answer.members
    assert min(np.abs(a - b).max(), np.abs(b - c).max(), np.abs(a - c).max()) > 1e-4
    assert np.abs(a - plain[2]).max() > 1e-4, "the saved A is no draw of these"
    again = asked(plain, "random_a", samples=2)
    assert again.members.tobytes() == answer.members[:2].tobytes()


@pytest.mark.parametrize("kind", ["deep_ensemble", "hyper_ensemble"])
def test_an_ensemble_of_one_is_the_plain_model_to_the_bit(plain, kind):
    settings = with_kind(few(), kind, samples=1)
    one, data = opened(settings)
    wanted, _ = opened(few())
    same = jax.tree.map(
        lambda x, y: np.array_equal(x, y), one.trainable, wanted.trainable
    )
    assert all(jax.tree.leaves(same))
    got = kinds.answerer(one)(data["validation"])
    logits = kinds.answerer(wanted)(data["validation"]).logits
    assert got.members is None and got.logits.tobytes() == logits.tobytes()


def test_a_member_of_a_stack_predicts_as_it_does_alone():
    chosen, data = opened(few(method="lora"))
    parts = [
        (opened(few(method="lora"), s)[0].trainable, chosen.frozen)
        for s in (0.1, 0.3, 0.5)
    ]
    trainable, frozen = members.stack(parts)
    settings = with_kind(chosen.bench.settings, "deep_ensemble")
    stacked = chosen._replace(
        bench=chosen.bench._replace(settings=settings),
        trainable=trainable,
        frozen=frozen,
    )
    answer = kinds.answerer(stacked)(data["validation"])
    for own_NY, (own, own_frozen) in zip(answer.members, parts, strict=True):
        alone = chosen._replace(trainable=own, frozen=own_frozen)
        logits = kinds.answerer(alone)(data["validation"]).logits
        assert own_NY.tobytes() == logits.tobytes()


def test_features_end_in_the_logits(plain):
    chosen, data, logits = plain
    features_ND = kinds.features(chosen)(data["validation"])
    last = kinds._last_layer(chosen)
    got = features_ND.astype(np.float64) @ last[:-1] + last[-1]
    np.testing.assert_allclose(got, logits, atol=1e-5)


@pytest.mark.parametrize("link", ["mean_field", "mc"])
def test_laplace_flattens_the_prediction_and_keeps_its_mean(plain, link):
    chosen, data, logits = plain
    own = UncertaintyConfig("laplace", 200, link=link)
    bench = kinds.chosen_afterwards(chosen.bench, own)
    run = chosen._replace(bench=bench)
    assert kinds.answerer(run)(data["validation"]).logits.tobytes() == logits.tobytes()
    posterior = kinds.fit_laplace(run, data["train"], data["calibration"])
    answer = kinds.answerer(run, posterior)(data["validation"])
    got, before = softmax(answer.logits).max(axis=1), softmax(logits).max(axis=1)
    assert answer.logits.shape == logits.shape
    if link == "mean_field":
        assert answer.members is None and np.all(got <= before + 1e-6)
        assert np.mean(before - got) > 0
        np.testing.assert_array_equal(answer.logits.argmax(1), logits.argmax(1))
    else:
        assert answer.members.shape == (200, *logits.shape)
        formula = kinds.laplace.predict(
            posterior, kinds.features(run)(data["validation"])
        )
        # four standard errors of 200 draws, and 0.01 of the formula's own error
        error = 4 * softmax(answer.members).std(axis=0) / np.sqrt(200) + 0.01
        assert np.all(np.abs(softmax(answer.logits) - softmax(formula)) < error)


@pytest.mark.parametrize("kind", kinds.TRAINED)
def test_a_kind_that_is_trained_is_not_chosen_afterwards(plain, kind):
    with pytest.raises(UserError, match=f"{kind} is trained, not chosen afterwards"):
        asked(plain, kind)


@pytest.fixture(scope="module")
def hyper_ensemble(tmp_path_factory):
    """A whole run whose members have learned enough to differ."""
    workdir = tmp_path_factory.mktemp("uncertainty") / "run"
    settings = few(optim={"lr": 3e-2, "num_epochs": 4}, data={"num_examples": 128})
    settings = with_kind(settings, "hyper_ensemble")
    return workdir, runs.train(settings, str(workdir), progress=False)


def test_a_hyper_ensembles_members_differ_and_share_one_network(hyper_ensemble):
    workdir, summary = hyper_ensemble
    assert summary["metrics"]["validation"]["uncertainty"]["members"] == K
    with np.load(workdir / "eval/validation/predictions.npz") as held:
        a, b, c = softmax(held["member_logits"])
    apart = [np.abs(x - y).max() for x, y in ((a, b), (b, c), (a, c))]
    assert min(apart) > 1e-3, "each was trained to be another model"
    run = evaluate.open_run(str(workdir))
    sizes = {n: kinds.trees.count(x) for n, x in run.trainable.items()}
    alone, _ = opened(few())
    wanted = {n: kinds.trees.count(x) for n, x in alone.trainable.items()}
    assert sizes.pop("cond") == K * wanted.pop("cond") and sizes == wanted
    assert summary["trained_parameters"] == kinds.trees.count(run.trainable)


def test_members_of_a_hyper_ensemble_disagree_by_their_embeddings_alone():
    chosen, data = opened(with_kind(few(), "hyper_ensemble"))
    answer = kinds.answerer(chosen)(data["validation"])
    out = chosen.trainable["head"]["out"]  # untrained, it gives all rows one class
    out["bias"] = out["bias"] - np.median(answer.logits, axis=0)
    answer = kinds.answerer(chosen)(data["validation"])
    about = kinds.about(chosen.bench.settings.uncertainty, answer)["uncertainty"]
    assert 0 < about["disagreement"] <= 1
    same = chosen.trainable["cond"]["embedding"][:1].repeat(K, axis=0)
    trainable = {**chosen.trainable, "cond": {"embedding": same}}
    answer = kinds.answerer(chosen._replace(trainable=trainable))(data["validation"])
    np.testing.assert_array_equal(answer.members[0], answer.members[1])


def test_files_evaluate_and_predict_agree_about_the_average(hyper_ensemble):
    workdir, summary = hyper_ensemble
    with np.load(workdir / "eval/validation/predictions.npz") as held:
        own_KNY, logits = held["member_logits"], held["logits"]
    assert own_KNY.shape == (K, *logits.shape)
    mean_NY = softmax(own_KNY).mean(axis=0)
    np.testing.assert_allclose(softmax(logits), mean_NY, atol=1e-6)
    before = summary["metrics"]["validation"]
    again = evaluate.evaluate(str(workdir), "validation")
    assert again["nll"] == pytest.approx(before["nll"], abs=1e-6)
    assert again["uncertainty"] == before["uncertainty"]
    run = evaluate.open_run(str(workdir))
    table = setup.load_corpus(run.bench.settings).splits["validation"]
    lines = [json.dumps({"text": text}) for text in table.text[:8]]
    answers = [json.loads(x) for x in predict_lines(str(workdir), lines)]
    wanted = softmax(logits[:8] / run.calibrator.temperature)
    got = [[a["probs"][name] for name in run.bench.task.labels] for a in answers]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.fixture
def experiment(monkeypatch):
    """experiments/uncertainty.py; its intervals are not what is tested here."""
    path = Path(__file__).parents[2] / "experiments/uncertainty.py"
    spec = importlib.util.spec_from_file_location("uncertainty_experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def intervals(probs_NY, label_N):
        nll = -np.log(probs_NY[np.arange(len(label_N)), label_N]).mean()
        return {"nll": {"value": nll, "low": nll - 0.1, "high": nll + 0.1}}

    monkeypatch.setattr(module, "intervals", intervals)
    return module


def test_a_row_of_the_table_is_the_runs_averaged_test_split(experiment, hyper_ensemble):
    workdir, summary = hyper_ensemble
    row = experiment.row(workdir, summary)
    judged = summary["metrics"]["test"]
    assert row["calibrated"]["nll"]["value"] == pytest.approx(judged["nll"], abs=1e-9)
    before = judged["uncalibrated"]["nll"]
    assert row["averaged"]["nll"]["value"] == pytest.approx(before, abs=1e-9)
    for name in ("members", "disagreement"):
        assert row["averaged"][name] == judged["uncertainty"][name]
    assert row["averaged"]["trained_parameters"] == summary["trained_parameters"]
    assert set(experiment.TRAINED) | set(experiment.AFTERWARDS) == set(experiment.ORDER)


@pytest.mark.soak
def test_the_tables_command_makes_all_rows(experiment, tmp_path):
    overrides = ["--config.data.num_examples=64", "--config.optim.num_epochs=1"]
    made = experiment.table("smoke", overrides, 2, tmp_path)
    assert [row[0] for row in made[0].rows] == list(experiment.ORDER)
    assert len(json.loads((tmp_path / "uncertainty.json").read_text())) == 7
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
    step = evaluate.open_run(str(tmp_path / "ensemble")).step
    for k in range(K):
        alone = dataclasses.replace(settings, seed=4 + k, select_on="last")
        workdir = tmp_path / f"alone_{k}"
        runs.train(alone, str(workdir), progress=False)
        assert evaluate.open_run(str(workdir)).step == step, "compared at one step"
        with np.load(workdir / "eval/validation/predictions.npz") as held:
            np.testing.assert_allclose(own_KNY[k], held["logits"], atol=1e-5)
