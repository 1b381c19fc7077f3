"""The direction that tells a description from its negation."""

import numpy as np
import pytest

from hypelora_jax.config.settings import ConditionConfig, Settings
from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.train.conditioning import opposites

C, WORDINGS = 12, 6
ATTRIBUTES = 8


def set_of(rng, held_out=()):
    """Tasks x and not_x by turns, with embeddings whose last entry is the polarity."""
    names, texts, vectors = [], [], []
    for k in range(2 * ATTRIBUTES):
        about = np.zeros(C)
        about[k // 2] = 3
        about[-1] = 1 if k % 2 == 0 else -1
        names.append(f"task_{k}")
        texts.append(tuple(f"{k} in wording {i}" for i in range(WORDINGS)))
        x = about + 0.3 * rng.normal(size=(WORDINGS, C))
        vectors.append(x.astype(np.float32))
    tasks = TaskSet(
        tuple(names),
        tuple(texts),
        (("no", "yes"),) * len(names),
        tuple(k in held_out for k in range(len(names))),
        (1.0,) * len(names),
        ((),) * len(names),
        tuple(texts[k ^ 1] for k in range(len(names))),
    )
    return tasks, TaskArrays({}, {"condition": vectors})


def settings(sign=1, **condition):
    return Settings(condition=ConditionConfig(source="text", sign=sign, **condition))


def test_opposite_training_tasks_are_found_once_each():
    tasks, _ = set_of(np.random.default_rng(0), held_out=(3, 8))
    wanted = [(k, k + 1) for k in range(0, 2 * ATTRIBUTES, 2) if k not in (2, 8)]
    assert opposites.pairs(tasks) == wanted
    alone = tasks._replace(negations=(("nothing",),) * len(tasks.names))
    assert opposites.pairs(alone) == []


@pytest.mark.parametrize("standardise", [True, False])
def test_the_sign_is_that_of_negations_that_were_not_trained(standardise):
    held_out = (1, 4, 11)
    tasks, found = set_of(np.random.default_rng(0), held_out)
    leaves = opposites.leaves(settings(standardise=standardise), tasks, found)
    w, b = leaves["cond/sign/kernel"], leaves["cond/sign/bias"]
    assert w.shape == (C,) and w.dtype == np.float64 and b.shape == ()
    axis = leaves["cond/sign/axis"]
    np.testing.assert_allclose(axis, w / np.linalg.norm(w), rtol=1e-12)
    known = np.concatenate(
        [x for k, x in enumerate(found.choices["condition"]) if k not in held_out]
    ).astype(np.float64)
    for k, x in enumerate(found.choices["condition"]):
        if standardise:
            x = (x - known.mean(axis=0)) / known.std(axis=0)
        else:
            x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))
        signs = b + x @ w
        assert ((signs > 0) == (k % 2 == 0)).all(), k
        assert 0.2 < np.abs(signs).mean() < 1.5


def test_the_ridge_regression_is_that_of_the_normal_equations():
    tasks, found = set_of(np.random.default_rng(1))
    each = [x.astype(np.float64) for x in found.choices["condition"]]
    w, b = opposites.sign(tasks, each)
    x = np.concatenate(each)
    y = np.repeat(np.resize([1.0, -1.0], 2 * ATTRIBUTES), WORDINGS)
    residual = b + x @ w - y
    slope = x.T @ residual + opposites.RIDGE * len(x) * w
    np.testing.assert_allclose(slope, np.zeros(C), atol=1e-9)
    np.testing.assert_allclose(residual.sum(), 0, atol=1e-9)


@pytest.mark.parametrize("standardise", [True, False])
def test_several_layers_tell_the_sign_and_the_last_one_gives_the_axis(standardise):
    tasks, found = set_of(np.random.default_rng(0))
    last = found.choices["condition"]
    first = [x[:, ::-1] for x in last]
    both = [np.concatenate(x, axis=1) for x in zip(first, last, strict=True)]
    own = settings(2, standardise=standardise), tasks
    leaves = opposites.leaves(*own, TaskArrays({}, {"condition": both}))
    w = leaves["cond/sign/kernel"]
    np.testing.assert_allclose(w[:C], w[C:][::-1], rtol=1e-9)  # they tell the same
    alone = opposites.leaves(settings(standardise=standardise), tasks, found)
    np.testing.assert_allclose(
        leaves["cond/sign/axis"], alone["cond/sign/axis"], rtol=1e-6
    )


def test_a_task_weighs_the_same_however_many_descriptions_it_has():
    tasks, found = set_of(np.random.default_rng(1))
    each = [x.astype(np.float64) for x in found.choices["condition"]]
    more = [np.concatenate([x] * (1 + k % 3)) for k, x in enumerate(each)]
    for got, wanted in zip(
        opposites.sign(tasks, more), opposites.sign(tasks, each), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_the_regression_of_fewer_rows_than_entries_is_the_same():
    tasks, found = set_of(np.random.default_rng(1))
    each = [x.astype(np.float64) for x in found.choices["condition"]]
    wide = [np.concatenate([x, np.zeros((len(x), 200))], axis=1) for x in each]
    w, b = opposites.sign(tasks, each)
    got, bias = opposites.sign(tasks, wide)
    np.testing.assert_allclose(got, [*w, *np.zeros(200)], atol=1e-12)
    np.testing.assert_allclose(bias, b, atol=1e-12)


def test_without_opposite_tasks_or_descriptions_it_is_refused():
    tasks, found = set_of(np.random.default_rng(0))
    alone = tasks._replace(negations=((),) * len(tasks.names))
    with pytest.raises(UserError, match="each other's negation, but no description"):
        opposites.leaves(settings(), alone, found)
    with pytest.raises(UserError, match="condition.source=text"):
        opposites.leaves(settings(), None, None)
