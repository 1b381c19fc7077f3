"""Temperature scaling: every input converges, and the fit is the best there is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.calibration.calibrators import temperature as scaling
from hypelora_jax.errors import UserError

WIDEST, MOST = 6, 60  # classes and examples of a case


def cases(count):
    """Splits: random, calibrated, separable, constant; scales 1e-4 to 1e4."""
    draw = np.random.default_rng(0)
    for i in range(count):
        n, classes = int(draw.integers(1, MOST)), int(draw.integers(2, WIDEST))
        logits = draw.normal(size=(n, classes)) * 10.0 ** draw.integers(-4, 5)
        labels = draw.integers(0, classes, n)
        kind = ("random", "separable", "constant", "right")[i % 4]
        if kind == "separable":
            labels = logits.argmax(axis=1)
        elif kind == "constant":
            logits = np.full_like(logits, draw.normal() * 1e4)
        elif kind == "right":
            labels = np.where(draw.random(n) < 0.7, logits.argmax(axis=1), labels)
        yield kind, logits, labels


def nll(logits, labels, temperature):
    z = logits / temperature
    z = z - np.take_along_axis(z, labels[:, None], axis=1)
    return np.mean(np.logaddexp.reduce(z, axis=1))


def check(kind, logits, labels):
    state = calibrators.build("temperature").fit(logits, labels)
    t = state.temperature
    assert kind != "constant" or t == 1  # no T is better there
    assert calibrators.T_MIN <= t <= calibrators.T_MAX
    untouched = nll(logits, labels, 1.0)
    assert nll(logits, labels, t) <= untouched * (1 + 1e-12)
    assert state.nll_after <= state.nll_before
    # nothing nearby within the bounds is better
    for near in (t * 0.98, t * 1.02):
        if calibrators.T_MIN <= near <= calibrators.T_MAX:
            assert nll(logits, labels, near) >= nll(logits, labels, t) - 1e-12


def test_every_split_converges_and_is_never_worse_than_no_calibration():
    for case in cases(200):
        check(*case)


@pytest.mark.soak
def test_ten_thousand_splits_converge():
    for case in cases(10_000):
        check(*case)


def test_the_solver_is_one_program_for_many_splits():
    """Jitted and vmapped, with padding rows of NaN, it finds what numpy finds."""
    held = [(z, y) for _, z, y in cases(400) if z.shape[1] == 3]
    shape = (len(held), MOST)
    logits, labels = np.full((*shape, 3), np.nan, np.float32), np.full(shape, -1)
    weights = np.zeros(shape, np.float32)
    for i, (z, y) in enumerate(held):
        logits[i, : len(y)], labels[i, : len(y)], weights[i, : len(y)] = z, y, 1
    many = jax.jit(jax.vmap(scaling.solve))
    found = many(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    for i, (z, y) in enumerate(held):
        t = float(found.temperature[i])
        wanted = calibrators.build("temperature").fit(z, y)
        z = z.astype(np.float32).astype(float)
        # float32 sums losses of magnitude up to 1e4 with a relative error of 1e-7
        slack = 1e-6 * (1 + wanted.nll_before)
        assert nll(z, y, t) <= wanted.nll_after + slack
        assert calibrators.T_MIN * (1 - 1e-6) <= t <= calibrators.T_MAX * (1 + 1e-6)


def test_the_slope_and_curvature_are_the_derivatives_of_the_loss():
    _, z, y = next(c for c in cases(8) if c[0] == "right" and len(c[1]) > 10)
    z, share = scaling._relative(np, z, y, np.ones(len(y)))
    z /= np.abs(z).max()
    at = lambda b: scaling._moments(np, z, share, b)  # noqa: E731
    step = 1e-5
    slope = (at(0.7 + step)[0] - at(0.7 - step)[0]) / (2 * step)
    curvature = (at(0.7 + step)[1] - at(0.7 - step)[1]) / (2 * step)
    assert at(0.7)[1:] == pytest.approx((slope, curvature), rel=1e-7)


def test_finds_the_temperature_that_was_applied():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20_000, 2))
    labels = (draw.random(20_000) < calibrators.softmax(logits)[:, 1]).astype(int)
    state = calibrators.build("temperature").fit(3.0 * logits, labels)
    assert state.temperature == pytest.approx(3.0, rel=0.06)


def test_by_hand():
    # logits +-log 9 are right 3 times of 4: best p is 3/4, so T = log 9 / log 3 = 2
    logits = np.log([[9.0, 1.0]] * 4)
    state = calibrators.build("temperature").fit(logits, np.array([0, 0, 0, 1]))
    assert state.temperature == pytest.approx(2.0, rel=1e-9)
    got = calibrators.apply(state, logits)
    np.testing.assert_allclose(got, [[0.75, 0.25]] * 4, rtol=1e-9)
    assert state.nll_after == pytest.approx(metrics.nll(got, [0, 0, 0, 1]))


def test_no_example_gives_one():
    state = calibrators.build("temperature").fit(np.zeros((2, 2)), [0, 1], [0, 0])
    assert state.temperature == 1
    found = jax.jit(scaling.solve)(jnp.zeros((2, 2)), jnp.arange(2), jnp.zeros(2))
    assert found.temperature == 1


def test_shifting_logits_changes_nothing():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(50, 3)), draw.integers(0, 3, 50)
    labels[:30] = logits[:30].argmax(axis=1)
    fit = calibrators.build("temperature").fit
    moved = fit(logits + 5.0 * draw.normal(size=(50, 1)), labels)
    assert moved.temperature == pytest.approx(fit(logits, labels).temperature, rel=1e-6)


def test_applies_to_jax_and_numpy_alike_under_jit():
    logits = np.random.default_rng(0).normal(size=(5, 3)) * 10
    state = calibrators.Temperature(2.5)
    wanted = calibrators.apply(state, logits)
    assert wanted.dtype == np.float64
    apply = jax.jit(calibrators.build("temperature").apply)
    got = apply(state, jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    low = calibrators.apply(state, jnp.asarray(logits, jnp.bfloat16))
    assert low.dtype == jnp.float32


def test_refuses_what_is_no_logit_label_or_weight():
    fit = calibrators.build("temperature").fit
    with pytest.raises(UserError, match="1 of 2 rows of logits are not finite"):
        fit(np.array([[0.0, math.inf], [0.0, 1.0]]), np.array([0, 1]))
    with pytest.raises(UserError, match="labels run from -1 to 1; expected 0 to 1"):
        fit(np.zeros((2, 2)), np.array([-1, 1]))
    with pytest.raises(UserError, match="weight is -1.0; expected a finite number"):
        fit(np.zeros((2, 2)), np.array([0, 1]), np.array([1, -1]))
