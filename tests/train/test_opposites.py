"""The direction that tells a description from its negation."""

import numpy as np
import pytest
from opposite_tasks import ATTRIBUTES, WORDINGS, described, set_of

from hypelora_jax.errors import UserError
from hypelora_jax.train.conditioning import opposites

C = 12


def test_opposite_training_tasks_are_found_once_each():
    tasks, _ = set_of(np.random.default_rng(0), held_out=(3, 8))
    wanted = [(k, k + 1) for k in range(0, 2 * ATTRIBUTES, 2) if k not in (2, 8)]
    assert opposites.pairs(tasks) == wanted


def test_the_sign_is_a_logistic_regression_with_a_penalty():
    tasks, found = set_of(np.random.default_rng(1))
    each = described(found)
    w, b = opposites.sign(opposites.sides(tasks, each), each)
    assert w.shape == (C,) and w.dtype == np.float64 and b.shape == ()
    x = np.concatenate([*each.values()])
    side = np.repeat(np.resize([1.0, -1.0], 2 * ATTRIBUTES), WORDINGS)
    slope = -side / (1 + np.exp(side * (b + x @ w))) / len(x)
    np.testing.assert_allclose(x.T @ slope + opposites.PENALTY * w, 0, atol=1e-6)
    np.testing.assert_allclose(slope.sum(), 0, atol=1e-6)


def test_which_side_is_the_negation_is_found_for_pairs_in_any_order():
    tasks, found = set_of(np.random.default_rng(1))
    each = described(found)
    each[2], each[3] = each[3], each[2]  # here the second of a pair is not negated
    wanted = {k: 1.0 if (k % 2 == 0) != (k in (2, 3)) else -1.0 for k in each}
    assert opposites.sides(tasks, each) == wanted


def test_a_task_weighs_the_same_however_many_descriptions_it_has():
    tasks, found = set_of(np.random.default_rng(1))
    each = described(found)
    more = {k: np.concatenate([x] * (1 + k % 3)) for k, x in each.items()}
    side = opposites.sides(tasks, each)
    found = opposites.sign(side, more), opposites.sign(side, each)
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("negations", [(), ("nothing",)])
def test_without_opposite_tasks_it_is_refused(negations):
    tasks, found = set_of(np.random.default_rng(0))
    alone = tasks._replace(negations=(negations,) * len(tasks.names))
    with pytest.raises(UserError, match="each other's negation, but no description"):
        opposites.pairs(alone)
    with pytest.raises(UserError, match="each other's negation, but no description"):
        opposites.sides(alone, described(found))
