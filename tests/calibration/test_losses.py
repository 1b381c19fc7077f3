import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from hypelora_jax.calibration import losses
from hypelora_jax.settings import LossConfig
from hypelora_jax.types import UserError

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
LABELS = jnp.asarray([0, 2, 1, 1, 0, 2])


def _apply(logits, labels, regression=False, params=None, **config):
    loss = losses.build(LossConfig(**config), regression)
    return loss.apply(loss.init() if params is None else params, logits, labels)


def test_cross_entropy_by_hand():
    # logits log 3 and log 1: p = 3/4, 1/4
    logits = jnp.log(jnp.asarray([[3.0, 1.0], [3.0, 1.0]]))
    got = _apply(logits, jnp.asarray([0, 1]))
    np.testing.assert_allclose(got, [math.log(4 / 3), math.log(4)], rtol=1e-6)
    # at T = 1/2 the odds are squared: p = 9/10, 1/10
    got = _apply(logits, jnp.asarray([0, 1]), temperature=0.5)
    np.testing.assert_allclose(got, [math.log(10 / 9), math.log(10)], rtol=1e-6)


def test_soft_labels_by_hand():
    logits = jnp.log(jnp.asarray([[3.0, 1.0]]))
    got = _apply(logits, jnp.asarray([[0.75, 0.25]]))
    wanted = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    np.testing.assert_allclose(got, [wanted], rtol=1e-6)


def test_one_hot_labels_are_hard_labels():
    soft = _apply(LOGITS, jax.nn.one_hot(LABELS, 3))
    np.testing.assert_allclose(soft, _apply(LOGITS, LABELS), rtol=1e-6)


def test_squared_error_by_hand():
    logits, label = jnp.asarray([[2.0], [-1.0]]), jnp.asarray([5.0, 0.5])
    got = _apply(logits, label, regression=True)
    np.testing.assert_allclose(got, [9.0, 2.25], rtol=1e-6)
    got = _apply(logits, label, regression=True, weight=2.0)
    np.testing.assert_allclose(got, [18.0, 4.5], rtol=1e-6)


def test_learned_temperature_at_a_value_is_the_fixed_one():
    params = {"log_t": jnp.asarray(math.log(1.7))}
    learned = _apply(LOGITS, LABELS, params=params, temperature="learned")
    fixed = _apply(LOGITS, LABELS, temperature=1.7)
    np.testing.assert_allclose(learned, fixed, rtol=1e-6)
    np.testing.assert_allclose(losses.temperature_of(params), 1.7, rtol=1e-6)
    assert losses.temperature_of({}) == 1


def test_a_learned_temperature_starts_at_one():
    start = _apply(LOGITS, LABELS, temperature="learned")
    np.testing.assert_allclose(start, _apply(LOGITS, LABELS), rtol=1e-6)


def test_gradients():
    with jax.enable_x64(True):
        logits = jnp.asarray(np.asarray(LOGITS), jnp.float64)
        labels = jnp.asarray(np.asarray(LABELS))
        loss = losses.build(LossConfig(temperature="learned"), False)
        params = {"log_t": jnp.asarray(0.3)}
        check_grads(lambda p, z: loss.apply(p, z, labels), (params, logits), 1)
        mse = losses.build(LossConfig(), True)
        score = jnp.linspace(0.0, 5.0, 6)
        check_grads(lambda z: mse.apply({}, z, score), (logits,), 1)


def test_weight_zero_is_dropping_the_row():
    x, weight = jnp.asarray([1.0, 5.0, 3.0]), jnp.asarray([1.0, 0.0, 1.0])
    assert float(losses.mean(x, weight)) == 2.0
    poisoned = jnp.asarray([1.0, jnp.nan, 3.0])
    assert float(losses.mean(poisoned, weight)) == 2.0
    assert float(losses.total(poisoned, weight)) == 4.0
    gradient = jax.grad(losses.mean)(poisoned, weight)
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])


def test_the_mean_is_weighted():
    got = losses.mean(jnp.asarray([1.0, 4.0]), jnp.asarray([2.0, 1.0]))
    assert float(got) == 2.0


def test_no_rows_give_a_finite_mean_and_gradient():
    value, gradient = jax.value_and_grad(losses.mean)(jnp.ones(2), jnp.zeros(2))
    assert float(value) == 0 and not np.any(gradient)


def test_half_precision_is_widened_and_float64_kept():
    assert _apply(LOGITS.astype(jnp.bfloat16), LABELS).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(LOGITS, np.float64))
        for temperature in (1.0, 2.0, "learned"):
            got = _apply(wide, jnp.asarray([0] * 6), temperature=temperature)
            assert got.dtype == jnp.float64
        got = _apply(wide, jnp.ones(6, jnp.float32), regression=True)
        assert got.dtype == jnp.float64


@pytest.mark.parametrize(
    ("config", "regression", "message"),
    [
        ({"name": "mse"}, False, "loss.name is 'mse'.*classes.*cross_entropy"),
        ({"name": "cross_entropy"}, True, "loss.name is 'cross_entropy'.*numbers.*mse"),
        ({"temperature": 2.0}, True, "temperature is 2.0.*mse has no temperature"),
        ({"weight": 0.0}, False, "weight is 0.0; wanted above 0"),
        ({"weight": math.nan}, False, "weight is nan; wanted above 0"),
    ],
)
def test_refuses(config, regression, message):
    with pytest.raises(UserError, match=message):
        losses.build(LossConfig(**config), regression)
