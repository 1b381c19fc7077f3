import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.types import UserError


def _cases():
    """200 splits: random, calibrated, separable, constant; scales 1e-4 to 1e4."""
    draw = np.random.default_rng(0)
    for i in range(200):
        n, classes = int(draw.integers(1, 60)), int(draw.integers(2, 6))
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


def _nll(logits, labels, temperature):
    z = logits / temperature
    z = z - np.take_along_axis(z, labels[:, None], axis=1)
    return np.mean(np.logaddexp.reduce(z, axis=1))


def test_every_split_converges_and_is_never_worse_than_no_calibration():
    for kind, logits, labels in _cases():
        state = calibrators.temperature().fit(logits, labels)
        t = state.temperature
        assert kind != "constant" or t == 1  # no T is better there
        assert calibrators.T_MIN <= t <= calibrators.T_MAX
        untouched = _nll(logits, labels, 1.0)
        assert _nll(logits, labels, t) <= untouched * (1 + 1e-12)
        # nothing nearby within the bounds is better
        for near in (t * 0.98, t * 1.02):
            if calibrators.T_MIN <= near <= calibrators.T_MAX:
                assert _nll(logits, labels, near) >= _nll(logits, labels, t) - 1e-12


def test_finds_the_temperature_that_was_applied():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(200_000, 2))
    labels = (draw.random(200_000) < calibrators.softmax(logits)[:, 1]).astype(int)
    state = calibrators.temperature().fit(3.0 * logits, labels)
    assert state.temperature == pytest.approx(3.0, rel=0.02)


def test_by_hand():
    # logits +-log 9 are right 3 times of 4: best p is 3/4, so T = log 9 / log 3 = 2
    logits = np.log([[9.0, 1.0]] * 4)
    state = calibrators.temperature().fit(logits, np.array([0, 0, 0, 1]))
    assert state.temperature == pytest.approx(2.0, rel=1e-9)
    got = calibrators.apply(state, logits)
    np.testing.assert_allclose(got, [[0.75, 0.25]] * 4, rtol=1e-9)
    assert state.nll_after == pytest.approx(metrics.nll(got, [0, 0, 0, 1]))


def test_weight_zero_is_dropping_the_row():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(50, 3)), draw.integers(0, 3, 50)
    labels[:30] = logits[:30].argmax(axis=1)
    weight = np.arange(50) % 3 > 0
    dropped = calibrators.temperature().fit(logits[weight], labels[weight])
    logits[~weight], labels[~weight] = np.nan, -1
    assert calibrators.temperature().fit(logits, labels, weight) == dropped


def test_no_example_gives_one():
    state = calibrators.temperature().fit(np.zeros((2, 2)), [0, 1], [0, 0])
    assert state.temperature == 1


def test_shifting_logits_changes_nothing():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(50, 3)), draw.integers(0, 3, 50)
    labels[:30] = logits[:30].argmax(axis=1)
    fit = calibrators.temperature().fit
    moved = fit(logits + 5.0 * draw.normal(size=(50, 1)), labels)
    assert moved.temperature == pytest.approx(fit(logits, labels).temperature, rel=1e-6)


def test_applies_to_jax_and_numpy_alike_under_jit():
    logits = np.random.default_rng(0).normal(size=(5, 3)) * 10
    state = calibrators.Temperature(2.5)
    wanted = calibrators.apply(state, logits)
    assert wanted.dtype == np.float64
    apply = jax.jit(calibrators.temperature().apply)
    got = apply(state, jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    low = calibrators.apply(state, jnp.asarray(logits, jnp.bfloat16))
    assert low.dtype == jnp.float32


def test_identity_is_softmax():
    logits = np.log([[3.0, 1.0]])
    calibrator = calibrators.identity()
    state = calibrator.fit(logits, [0])
    np.testing.assert_allclose(calibrator.apply(state, logits), [[0.75, 0.25]])


@pytest.mark.parametrize(
    "state",
    [
        calibrators.Identity(),
        calibrators.Temperature(1.25, 0.5, 0.4, 100),
        calibrators.Temperature(0.1 + 0.2),
    ],
)
def test_json_round_trip(state):
    back = calibrators.from_json(calibrators.to_json(state))
    assert type(back) is type(state)
    np.testing.assert_equal(tuple(back), tuple(state))  # NaN equals NaN here


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "kind None; wanted one of identity, temperature"),
        ('{"kind": "magic"}', "kind 'magic'; wanted one of"),
        ('{"kind": "temperature"}', "temperature None; wanted a number above 0"),
        ('{"kind": "temperature", "temperature": 0}', "temperature 0; wanted"),
        ('{"kind": "temperature", "temperature": NaN}', "temperature nan; wanted"),
        ('{"kind": "temperature", "temperature": true}', "temperature True; wanted"),
        ('{"kind": "temperature", "temperature": "2"}', "temperature '2'; wanted"),
        ('{"kind": "identity", "t": 1}', "unknown field 't'"),
    ],
)
def test_refuses_json(text, message):
    with pytest.raises(UserError, match=message):
        calibrators.from_json(text)


def test_refuses_what_is_no_logit_or_label():
    fit = calibrators.temperature().fit
    with pytest.raises(UserError, match="1 of 2 rows of logits are not finite"):
        fit(np.array([[0.0, math.inf], [0.0, 1.0]]), np.array([0, 1]))
    with pytest.raises(UserError, match="labels run from -1 to 1; wanted 0 to 1"):
        fit(np.zeros((2, 2)), np.array([-1, 1]))
    with pytest.raises(UserError, match="calibrator is 'magic'; wanted one of"):
        calibrators.build("magic")
