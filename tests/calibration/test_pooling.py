"""Averaging members: hand numbers, laws, and bits that must not change."""

import numpy as np
import pytest
import scipy.special

from hypelora_jax.calibration import pooling


def members(k=4, n=50, y=3, dtype=np.float64):
    return np.random.default_rng(0).normal(0, 5, (k, n, y)).astype(dtype)


def test_by_hand():
    sure, unsure = np.log([[0.9, 0.1]]), np.log([[0.4, 0.6]])
    probs = scipy.special.softmax(pooling.pool(np.stack([sure, unsure])), axis=-1)
    np.testing.assert_allclose(probs, [[0.65, 0.35]], atol=1e-15)


@pytest.mark.parametrize("temperature", [1.0, 2.5, np.array([0.5, 1.0, 2.0, 4.0])])
def test_softmax_of_the_pool_is_the_mean_probability(temperature):
    logits_KNY = members()
    t_K = np.broadcast_to(temperature, 4)
    wanted = scipy.special.softmax(logits_KNY / t_K[:, None, None], axis=-1).mean(0)
    pooled = pooling.pool(logits_KNY, temperature)
    got = scipy.special.softmax(pooled / t_K[0], axis=-1)
    np.testing.assert_allclose(got, wanted, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 10])
@pytest.mark.parametrize("y", [1, 2, 3])
def test_members_that_agree_to_the_bit_give_their_own_logits(k, y):
    one = members(1, y=y, dtype=np.float32)
    pooled = pooling.pool(np.repeat(one, k, axis=0), 1.7)
    assert pooled.dtype == np.float32 and np.array_equal(pooled, one[0])


def test_huge_and_opposite_logits_stay_finite():
    logits_KNY = np.array([[[1e4, -1e4]], [[-1e4, 1e4]]])
    pooled = pooling.pool(logits_KNY)
    np.testing.assert_allclose(scipy.special.softmax(pooled), [[0.5, 0.5]], atol=1e-9)


def test_a_regressions_scores_are_averaged():
    scores_KN1 = np.array([[[1.0]], [[2.0]], [[6.0]]])
    assert pooling.pool(scores_KN1).item() == pytest.approx(3.0)


def test_disagreement_by_hand():
    logits_KNY = np.eye(3)[np.array([[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]])]
    # pairs differ on 1, 2 and 1 of 4 rows
    assert pooling.disagreement(logits_KNY) == pytest.approx((1 + 2 + 1) / 12)
    assert pooling.disagreement(logits_KNY[:1]) == 0
    assert pooling.disagreement(np.stack([logits_KNY[0]] * 3)) == 0
