"""Calibrators of one probability: numbers by hand, ties, bounds, exact tails."""

import numpy as np
import pytest
import simulated

from hypelora_jax.calibration import calibrators
from hypelora_jax.calibration.calibrators import monotone, one_vs_rest, stepwise


def test_isotonic_by_hand():
    p = np.array([0.1, 0.2, 0.3, 0.3, 0.6, 0.8])
    hit = np.array([0, 1, 0, 0, 1, 1])
    # .2 (1) and .3 (0, 0) are in the wrong order: pooled, a third of them hits
    state = monotone.fit_isotonic(np.log(np.stack([1 - p, p], axis=1)), hit)
    np.testing.assert_allclose(state.x[0], [0.1, 0.2, 0.3, 0.6, 0.8])
    np.testing.assert_allclose(state.y[0], [0, 1 / 3, 1 / 3, 1, 1])
    new = np.array([0.01, 0.15, 0.25, 0.45, 0.9])
    got = calibrators.apply(state, np.log(np.stack([1 - new, new], axis=1)))
    np.testing.assert_allclose(got[:, 1], [0, 1 / 6, 1 / 3, 2 / 3, 1])


def test_histogram_by_hand():
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
    hit = np.array([0, 1, 0, 0, 1, 1])
    logits = np.log(np.stack([1 - p, p], axis=1))
    state = stepwise.fit_histogram(logits, hit, bins=3)
    np.testing.assert_allclose(state.edges[0], [0.25, 0.5])
    np.testing.assert_allclose(state.values[0], [0.5, 0, 1])
    wide = stepwise.fit_histogram(logits, hit, bins=4, equal_mass=False)
    np.testing.assert_allclose(wide.values[0], [0.5, 0, 1, 1])
    empty = stepwise.fit_histogram(logits[:1], hit[:1], bins=4, equal_mass=False)
    np.testing.assert_allclose(empty.values[0], [0, 0.375, 0.625, 0.875])


def test_equal_probabilities_share_a_bin():
    p = np.array([0.2] * 5 + [0.9])
    logits = np.log(np.stack([1 - p, p], axis=1))
    state = stepwise.fit_histogram(logits, np.array([1, 0, 0, 0, 0, 1]), bins=3)
    np.testing.assert_allclose(state.values[0], [0.2, 1])


def test_beta_by_hand():
    # 1, 2, 1 of 4 examples at p = 1/5, 1/2, 4/5 hit 1/4, 1/2, 3/4 of the time:
    # odds 1/3, 1, 3 at odds 1/4, 1, 4, and symmetric, so a = b = log 3 / log 4
    p = np.repeat([0.2, 0.5, 0.8], 4)
    hit = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0])
    state = monotone.fit_beta(np.log(np.stack([1 - p, p], axis=1)), hit)
    wanted = np.log(3) / np.log(4)
    assert (state.a[0], state.b[0]) == pytest.approx((wanted, wanted), abs=1e-7)
    assert state.c[0] == pytest.approx(0, abs=1e-7)


def test_beta_stays_monotone_where_the_data_fall():
    logits, labels = simulated.split(2, 400)
    state = monotone.fit_beta(logits, 1 - labels)
    assert state.a[0] == state.b[0] == 0
    share = np.mean(1 - labels)
    assert calibrators.apply(state, logits)[0, 1] == pytest.approx(share, abs=1e-8)


def test_platt_binner_gives_the_mean_of_the_scaled_probabilities():
    logits, labels = simulated.split(2, 300)
    state = stepwise.fit_platt_binner(logits, labels, bins=5)
    scaled = 1 / (
        1 + np.exp(-(state.slope[0] * np.diff(logits)[:, 0] + state.intercept[0]))
    )
    got = calibrators.apply(state, logits)[:, 1]
    order = np.argsort(scaled)
    for part in np.split(order, 5):
        np.testing.assert_allclose(got[part], scaled[part].mean(), rtol=1e-12)


def test_one_minus_p_is_exact_where_p_rounds_to_one():
    logp, rest = one_vs_rest.log_probs(np.array([[50.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    assert rest[0, 0] == pytest.approx(np.log(1 + np.e) - 50, rel=1e-12)
    assert rest[0, 1] == pytest.approx(-np.exp(-50.0), rel=1e-12)
    np.testing.assert_allclose(np.exp(logp[1]) + np.exp(rest[1]), 1)


def test_a_row_of_zeros_becomes_uniform():
    got = one_vs_rest.joined(
        np.array([[0.0, 0.0, 0.0], [0.2, 0.2, 0.0]]), np.zeros((2, 3))
    )
    np.testing.assert_allclose(got, [[1 / 3] * 3, [0.5, 0.5, 0]])
