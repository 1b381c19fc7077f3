"""Every loss, minimised, gives back the true probabilities of the synthetic grammar."""

import jax
import numpy as np
import pytest
import scipy.special
from optimum import CLAIMS, best_table

from hypelora_jax.config.settings import LossConfig
from hypelora_jax.data.sources import synthetic
from hypelora_jax.objectives.losses import LOSSES
from hypelora_jax.objectives.penalties import PENALTIES


def kinds(num_classes):
    """The grammar's distinct class probabilities (K, Y) and how often each comes."""
    table = synthetic.draw(np.random.default_rng(0), 2000, num_classes)
    probs, count = np.unique(table.soft, axis=0, return_counts=True)
    probs = probs.astype(np.float64)
    return probs / probs.sum(1, keepdims=True), count / count.sum()


def cross_entropy(p_KY, q_KY, share_K):
    return float(share_K @ -(p_KY * np.log(q_KY)).sum(1))


def test_every_loss_has_a_claim():
    configs = [claim.config for claim in CLAIMS.values()]
    names = {"cross_entropy" if c.name == "auto" else c.name for c in configs}
    assert set(LOSSES) - names == set(), "add a line to CLAIMS in tests/optimum.py"
    assert set(PENALTIES) - {c.penalty for c in configs} == set()


@pytest.mark.parametrize("name", CLAIMS)
def test_the_minimum_is_where_it_is_claimed(name):
    claim = CLAIMS[name]
    p_KY, share_K = kinds(3)
    with jax.enable_x64(True):
        z_KY, _ = best_table(claim.config, p_KY, share_K)
    q_KY = scipy.special.softmax(z_KY, axis=1)
    np.testing.assert_allclose(claim.truth(q_KY), p_KY, atol=2e-3)
    entropy = cross_entropy(p_KY, p_KY, share_K)
    if claim.proper:
        assert cross_entropy(p_KY, q_KY, share_K) < 1.001 * entropy
    else:  # and the claim says something: the loss alone does not give the truth
        assert np.abs(q_KY - p_KY).max() > 5e-3


def test_the_minimum_with_a_margin_that_binds():
    # d = z_1 - z_0 minimises log loss + l max(0, |d| - m): where the odds exceed m,
    # p - q = l unless that falls below m, and then d = m
    p_K2, share_K = kinds(2)
    config = LossConfig(penalty="margin", penalty_weight=0.1, margin=2.0)
    with jax.enable_x64(True):
        z_K2, _ = best_table(config, p_K2, share_K)
    q_K = scipy.special.softmax(z_K2, axis=1).max(1)
    p_K, edge = p_K2.max(1), scipy.special.expit(2.0)
    wanted = np.where(p_K > edge, np.maximum(p_K - 0.1, edge), p_K)
    assert (p_K > edge).any() and (p_K - 0.1 > edge).any()
    np.testing.assert_allclose(q_K, wanted, atol=2e-3)
