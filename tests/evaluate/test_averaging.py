"""What each kind predicts, and that it is the plain prediction where it should be."""

import dataclasses

import jax
import numpy as np
import pytest
from uncertain import ALPHA, K, few, opened, softmax, with_kind

from hypelora_jax import trees
from hypelora_jax.config.settings import UncertaintyConfig
from hypelora_jax.data.batches import eval_batches
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import averaging
from hypelora_jax.evaluate.fitted import Answer
from hypelora_jax.train import ensembles, scoring


@pytest.fixture(scope="module")
def plain():
    """An ordinary HypeLoRA model with random A, and what it predicts."""
    chosen, data = opened(few(hyper={"a": "random"}))
    return chosen, data, averaging.answerer(chosen)(data["validation"]).logits


def asked(plain, kind: str, **fields) -> Answer:
    chosen, data, _ = plain
    own = UncertaintyConfig(kind=kind, **{"samples": K, **fields})
    session = averaging.with_kind(chosen.session, own)
    return averaging.answerer(chosen._replace(session=session))(data["validation"])


def test_none_is_the_ordinary_prediction(plain):
    chosen, data, logits = plain
    wanted = scoring.split_logits(
        chosen.forward,
        chosen.trainable,
        chosen.frozen,
        ALPHA,
        data["validation"],
        chosen.session.edges,
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
    settings = dataclasses.replace(chosen.session.settings, seed=1)
    other = chosen._replace(session=chosen.session._replace(settings=settings))
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
    session = averaging.with_kind(chosen.session, UncertaintyConfig("mc_dropout", K))
    first = next(eval_batches(data["validation"], chosen.session.edges, 32))
    twice = {name: first[name] for name in ("ids", "mask", "types")}
    draw = averaging.dropout.masks(
        session.settings, session.base.config, session.task, session.mesh
    )(0)
    params = trees.union(chosen.trainable, chosen.frozen)
    lora = draw.adapt(params, ALPHA, {})
    one, two = (np.asarray(draw.classify(params, lora, twice)) for _ in range(2))
    assert np.abs(one - two).max() > 1e-3


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
    got = averaging.answerer(one)(data["validation"])
    logits = averaging.answerer(wanted)(data["validation"]).logits
    assert got.members is None and got.logits.tobytes() == logits.tobytes()


def test_a_member_of_a_stack_predicts_as_it_does_alone():
    chosen, data = opened(few(method="lora"))
    parts = [
        (opened(few(method="lora"), s)[0].trainable, chosen.frozen)
        for s in (0.1, 0.3, 0.5)
    ]
    trainable, frozen = ensembles.stack(parts)
    settings = with_kind(chosen.session.settings, "deep_ensemble")
    stacked = chosen._replace(
        session=chosen.session._replace(settings=settings),
        trainable=trainable,
        frozen=frozen,
    )
    answer = averaging.answerer(stacked)(data["validation"])
    for own_NY, (own, own_frozen) in zip(answer.members, parts, strict=True):
        alone = chosen._replace(trainable=own, frozen=own_frozen)
        logits = averaging.answerer(alone)(data["validation"]).logits
        assert own_NY.tobytes() == logits.tobytes()


def test_features_end_in_the_logits(plain):
    chosen, data, logits = plain
    features_ND = averaging.features(chosen)(data["validation"])
    last = averaging._last_layer(chosen)
    got = features_ND.astype(np.float64) @ last[:-1] + last[-1]
    np.testing.assert_allclose(got, logits, atol=1e-5)


@pytest.mark.parametrize("link", ["mean_field", "mc"])
def test_laplace_flattens_the_prediction_and_keeps_its_mean(plain, link):
    chosen, data, logits = plain
    own = UncertaintyConfig("laplace", 200, link=link)
    session = averaging.with_kind(chosen.session, own)
    run = chosen._replace(session=session)
    assert (
        averaging.answerer(run)(data["validation"]).logits.tobytes() == logits.tobytes()
    )
    posterior = averaging.fit_laplace(run, data["train"], data["calibration"])
    answer = averaging.answerer(run, posterior)(data["validation"])
    got, before = softmax(answer.logits).max(axis=1), softmax(logits).max(axis=1)
    assert answer.logits.shape == logits.shape
    if link == "mean_field":
        assert answer.members is None and np.all(got <= before + 1e-6)
        assert np.mean(before - got) > 0
        np.testing.assert_array_equal(answer.logits.argmax(1), logits.argmax(1))
    else:
        assert answer.members.shape == (200, *logits.shape)
        formula = averaging.laplace.predict(
            posterior, averaging.features(run)(data["validation"])
        )
        # four standard errors of 200 draws, and 0.01 of the formula's own error
        error = 4 * softmax(answer.members).std(axis=0) / np.sqrt(200) + 0.01
        assert np.all(np.abs(softmax(answer.logits) - softmax(formula)) < error)


@pytest.mark.parametrize(
    "kind", [name for name, kind in averaging.KINDS.items() if kind.trained]
)
def test_a_kind_that_is_trained_is_not_chosen_afterwards(plain, kind):
    with pytest.raises(UserError, match=f"{kind} must be trained and cannot be chosen"):
        asked(plain, kind)


def test_members_of_a_hyper_ensemble_disagree_by_their_embeddings_alone():
    chosen, data = opened(with_kind(few(), "hyper_ensemble"))
    answer = averaging.answerer(chosen)(data["validation"])
    out = chosen.trainable["head"]["out"]  # untrained, it gives all rows one class
    out["bias"] = out["bias"] - np.median(answer.logits, axis=0)
    answer = averaging.answerer(chosen)(data["validation"])
    about = averaging.about(chosen.session.settings.uncertainty, answer)["uncertainty"]
    assert 0 < about["disagreement"] <= 1
    same = chosen.trainable["cond"]["embedding"][:1].repeat(K, axis=0)
    trainable = {**chosen.trainable, "cond": {"embedding": same}}
    answer = averaging.answerer(chosen._replace(trainable=trainable))(
        data["validation"]
    )
    np.testing.assert_array_equal(answer.members[0], answer.members[1])
