"""A predictor: every kind of uncertainty, known shapes, wrong questions."""

import numpy as np
import pytest
import step_zero
from uncertain import softmax

import hypelora_jax
from hypelora_jax.config.settings import UncertaintyConfig
from hypelora_jax.data import buckets
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import calibration_split, evaluation
from hypelora_jax.evaluate import fitted as fitted_lib
from hypelora_jax.run.paths import Run

MASKS = "mc_dropout"
TEXTS = [f"{n} " + "word " * (n % 6) for n in range(40)]
KINDS = {  # kind -> mode of step_zero, calibrator's temperature
    "none": "transformer",
    MASKS: "mlp",
    "random_a": "mlp_random",
    "hyper_ensemble": "mlp",
    "deep_ensemble": "lora",
    "laplace": "lora",
}


def tokenised(run, texts):
    label = np.arange(len(texts), dtype=np.int32) % 2
    return fitted_lib.tokenised(run, Table(np.arange(len(texts)), texts, None, label))


def run_of(kind, path):
    own = {"kind": kind, "samples": 3} | ({"dropout": 0.3} if kind == MASKS else {})
    made = step_zero.run_folder(
        path / "run", KINDS[kind], temperature=1.5, uncertainty=own
    )
    if kind == "laplace":
        plain = evaluation.open_fitted(
            str(step_zero.run_folder(path / "plain", KINDS[kind]))
        )
        run = evaluation.with_uncertainty(
            plain, UncertaintyConfig("laplace"), Run.open(made)
        )
        evaluation.fit_posterior(run, *[tokenised(run, TEXTS)] * 2)
    return str(made)


@pytest.mark.soak  # test_whole_runs has a hyper-ensemble, test_stream a single model
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_as_evaluate_does_and_twice_the_same(kind, tmp_path):
    path = run_of(kind, tmp_path)
    run = evaluation.open_fitted(path)
    answer = run.answer(tokenised(run, TEXTS))
    wanted = softmax(answer.logits / 1.5)
    if answer.members is not None:
        apart = np.abs(answer.members[0] - answer.members[1]).max()
        assert apart > 1e-5, "each member has an adapter of its own"
    model = hypelora_jax.load(path)
    for _ in range(2):  # the second time with the adapters that were kept
        got = [list(one["probs"].values()) for one in model.predict(TEXTS)]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-7)
    assert np.ptp(wanted[:, 0]) > 1e-4


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return str(
        step_zero.run_folder(tmp_path_factory.mktemp("run") / "run", task="three")
    )


@pytest.fixture(scope="module")
def model(pairs):
    return hypelora_jax.load(pairs)


def test_shapes_are_known_and_compiled_beforehand(pairs):
    model = hypelora_jax.load(pairs, batch_sizes=(1, 12))
    assert list(model.answerers) == [8, 16], "multiples of the 8 devices"
    assert model.edges == (16, 32)
    model.warm()
    classify = model.fitted.forward.classify
    assert classify._cache_size() == 4
    few = model.predict([("ab", "cd")])
    many = model.predict([("ab", "cd" * n) for n in range(1, 40)])
    assert classify._cache_size() == 4, "nothing new was compiled"
    assert many[0]["probs"] == pytest.approx(few[0]["probs"], abs=1e-6)


def test_the_adapter_is_made_once(model):
    calls = []
    adapt = model.fitted.forward.adapt

    def counted(*args):
        calls.append(1)
        return adapt(*args)

    forward = model.fitted.forward._replace(adapt=counted)
    run = model.fitted._replace(forward=forward)
    answerers = {32: evaluation.answerer(run, model.edges, 32)}
    model = model._replace(answerers=answerers)
    assert model.predict([("ab", "cd")]) == model.predict([("ab", "cd")])
    assert len(calls) == 1


def test_lengths_reach_max_length_by_doubling():
    assert buckets.extended((12, 24), 128) == (12, 24, 48, 96, 128)
    assert buckets.extended((128,), 128) == (128,)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text", "texts is the single text 'a text'; expected a list of texts"),
        (["a"], r"texts\[0\] is 'a'; expected a pair of texts"),
        ([("a", "b"), ("a", "b", "c")], r"texts\[1\] is .*; expected a pair"),
        ([("a", "")], "expected a text that is not empty"),
        ([("a", 3)], "expected a text that is not empty"),
        ([("a", "\ud800")], "not Unicode"),
        ([None], r"texts\[0\] is None"),
    ],
)
def test_wrong_questions(model, texts, message):
    with pytest.raises(UserError, match=message):
        model.predict(texts)


def test_no_question_no_answer(model):
    assert model.predict([]) == []


def test_sets_and_abstention_reach_the_api(pairs, model):
    run = model.fitted
    label = np.arange(40, dtype=np.int32) % 3
    data = fitted_lib.tokenised(run, Table(np.arange(40), TEXTS, TEXTS[::-1], label))
    evaluation.write_split(run, "calibration", data, model.answerers[32](data))
    wanted = calibration_split.SetMaker(0.8, "aps")
    threshold = calibration_split.threshold(run.run, model.task, run.calibrator, wanted)
    model = model._replace(threshold=threshold, abstain=1.0)
    for one in model.predict([(t, t) for t in TEXTS]):
        assert one["label"] is None and one["abstained"] and one["confidence"] < 1
        best = max(one["probs"], key=one["probs"].get)
        assert not one["set"] or one["set"][0] == best
    made = hypelora_jax.load(pairs, coverage=0.8, sets="aps", abstain=1.0)
    assert made.abstain == 1 and made.threshold.score_Y == pytest.approx(
        threshold.score_Y
    )
    with pytest.raises(UserError, match="expected above 0"):
        hypelora_jax.load(pairs, abstain=0.0)
