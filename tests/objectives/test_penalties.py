"""Penalties by hand, against plain loops, and what a row's weight means to them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tiny import mean

from hypelora_jax.config.settings import LossConfig
from hypelora_jax.objectives import penalties
from hypelora_jax.objectives.classification import class_loss
from hypelora_jax.objectives.penalties import PENALTIES

LOGITS = np.random.default_rng(0).normal(size=(7, 3)) * 2
LABELS = np.asarray([0, 2, 1, 1, 0, 2, 0])
OF_BATCH = {
    "mmce": lambda z, y, w: penalties.mmce(z, y, w, 0.4),
    "soft_ece": lambda z, y, w: penalties.soft_binned_ece(z, y, w, 15, 1e-2),
}


def odds(*ratios):
    """Logits of two classes whose probabilities are in these ratios to 1."""
    return jnp.log(jnp.asarray([[r, 1.0] for r in ratios]))


def test_confidence_by_hand():
    wanted = [0.75 * math.log(0.75) + 0.25 * math.log(0.25), -math.log(2)]
    np.testing.assert_allclose(penalties.confidence(odds(3.0, 1.0)), wanted, rtol=1e-6)


def test_margin_by_hand():
    logits = jnp.asarray([[5.0, 2.0, -7.0], [1.0, 1.0, 1.0]])
    # distances 0, 3, 12: beyond 2.5 by 0.5 and 9.5
    np.testing.assert_allclose(penalties.margin(logits, 2.5), [10.0, 0.0], rtol=1e-6)


def test_mmce_by_hand():
    # confidences 3/4 (right) and 1/2 (wrong: class 0 is said, first on a tie)
    got = penalties.mmce(odds(3.0, 1.0), jnp.asarray([0, 1]), jnp.ones(2), 0.4)
    cross = 2 * 0.25 * -0.5 * math.exp(-0.25 / 0.4)
    wanted = math.sqrt((0.25**2 + 0.5**2 + cross) / 4)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_soft_binned_ece_by_hand():
    # two bins, centres 1/4 and 3/4; confidence 3/4 is 1/4 away squared from the first
    got = penalties.soft_binned_ece(
        odds(3.0, 1.0), jnp.asarray([0, 1]), jnp.ones(2), 2, 0.25
    )
    far = 1 / (1 + math.e)  # share of confidence 3/4 in the first bin; of 1/2 it is 1/2
    low, high = far * 0.25 - 0.25, (1 - far) * 0.25 - 0.25
    wanted = low**2 / (far + 0.5) / 2 + high**2 / (1 - far + 0.5) / 2
    np.testing.assert_allclose(got, math.sqrt(wanted), rtol=1e-6)


def loop_mmce(z, y, width):
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    r, c = p.max(1), (p.argmax(1) == y).astype(float)
    total = 0.0
    for i in range(len(y)):
        for j in range(len(y)):
            kernel = math.exp(-abs(r[i] - r[j]) / width)
            total += (c[i] - r[i]) * (c[j] - r[j]) * kernel
    return math.sqrt(total) / len(y)


def loop_soft_ece(z, y, bins, temperature):
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    r, c = p.max(1), (p.argmax(1) == y).astype(float)
    centres = [(j + 0.5) / bins for j in range(bins)]
    size, right, said = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for i in range(len(y)):
        member = [math.exp(-((r[i] - x) ** 2) / temperature) for x in centres]
        for j in range(bins):
            share = member[j] / sum(member)
            size[j] += share
            right[j] += share * c[i]
            said[j] += share * r[i]
    gaps = [s / len(y) * (a / s - b / s) ** 2 for s, a, b in zip(size, right, said)]  # noqa: B905
    return math.sqrt(sum(gaps))


def test_penalties_of_a_batch_are_the_loops():
    with jax.enable_x64(True):
        args = jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.ones(7)
        got = penalties.mmce(*args, 0.4)
        np.testing.assert_allclose(got, loop_mmce(LOGITS, LABELS, 0.4), rtol=1e-10)
        got = penalties.soft_binned_ece(*args, 15, 1e-2)
        wanted = loop_soft_ece(LOGITS, LABELS, 15, 1e-2)
        np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize("name", OF_BATCH)
def test_weights_count_rows(name):
    penalty = OF_BATCH[name]
    z, y = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    twice = penalty(
        jnp.concatenate([z, z[:2]]), jnp.concatenate([y, y[:2]]), jnp.ones(9)
    )
    weight = jnp.asarray([2.0, 2.0, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(penalty(z, y, weight), twice, rtol=1e-5)
    np.testing.assert_allclose(penalty(z, y, 3 * weight), twice, rtol=1e-5)
    dropped = penalty(z, y, jnp.asarray([1.0, 1, 1, 1, 1, 0, 0]))
    np.testing.assert_allclose(penalty(z[:5], y[:5], jnp.ones(5)), dropped, rtol=1e-5)
    assert float(penalty(z, y, jnp.zeros(7))) == 0


@pytest.mark.parametrize("name", OF_BATCH)
def test_hard_labels_are_shares_of_one(name):
    z, y = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    soft = OF_BATCH[name](z, jax.nn.one_hot(y, 3), jnp.ones(7))
    np.testing.assert_allclose(OF_BATCH[name](z, y, jnp.ones(7)), soft, rtol=1e-6)


@pytest.mark.parametrize("name", OF_BATCH)
def test_where_confidence_is_accuracy_nothing_is_left(name):
    # 3/4 with three of four right, and 1/2 with one of two: value and gradient 0
    z = odds(3.0, 3.0, 3.0, 3.0, 1.0, 1.0)
    y = jnp.asarray([0, 0, 0, 1, 0, 1])
    value, gradient = jax.value_and_grad(OF_BATCH[name])(z, y, jnp.ones(6))
    assert float(value) < 1e-3 and np.isfinite(gradient).all()


@pytest.mark.parametrize("penalty", [n for n in PENALTIES if n != "none"])
def test_gradients(penalty):
    with jax.enable_x64(True):
        config = LossConfig(penalty=penalty, penalty_weight=0.7, margin=1.0)
        loss = class_loss(config)
        weight = jnp.asarray([1.0, 2.0, 0.0, 1.0, 1.0, 0.5, 1.0])
        y = jnp.asarray(LABELS)

        def weighted(z):
            return mean(loss.apply({}, z, y, weight), weight)

        check_grads(weighted, (jnp.asarray(LOGITS),), 1, modes=["rev"])
