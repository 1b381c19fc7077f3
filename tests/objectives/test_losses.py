import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tiny import mean

from hypelora_jax.calibration.arrays import total
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.errors import UserError
from hypelora_jax.objectives import losses as losses_lib
from hypelora_jax.objectives import training_loss
from hypelora_jax.objectives.classification import class_loss
from hypelora_jax.objectives.losses import LOSSES
from hypelora_jax.objectives.penalties import PENALTIES
from hypelora_jax.objectives.regression import number_loss
from hypelora_jax.types import ABSENT

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
LABELS = jnp.asarray([0, 2, 1, 1, 0, 2])


def _apply(logits, labels, regression=False, params=None, **config):
    loss = (number_loss if regression else class_loss)(LossConfig(**config))
    return loss.apply(
        loss.init(jax.random.key(0)) if params is None else params, logits, labels
    )


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


def test_label_smoothing_by_hand():
    # q' = 0.9 + 0.1 / 2 and 0.1 / 2
    logits = jnp.log(jnp.asarray([[3.0, 1.0]]))
    got = _apply(logits, jnp.asarray([0]), smoothing=0.1)
    wanted = 0.95 * math.log(4 / 3) + 0.05 * math.log(4)
    np.testing.assert_allclose(got, [wanted], rtol=1e-6)
    soft = _apply(logits, jnp.asarray([[0.5, 0.5]]), smoothing=0.1)
    np.testing.assert_allclose(soft, _apply(logits, jnp.full((1, 2), 0.5)), rtol=1e-6)


def test_focal_by_hand():
    logits = jnp.log(jnp.asarray([[3.0, 1.0], [3.0, 1.0]]))
    got = _apply(logits, jnp.asarray([0, 1]), name="focal", gamma=2.0)
    wanted = [(1 / 4) ** 2 * math.log(4 / 3), (3 / 4) ** 2 * math.log(4)]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    plain = _apply(LOGITS, LABELS, name="focal", gamma=0.0)
    np.testing.assert_allclose(plain, _apply(LOGITS, LABELS), rtol=1e-5)


def test_flsd53_by_hand():
    # p of the label: 1/10 (below 0.2: gamma 5), 1/4 and 9/10 (gamma 3)
    logits = jnp.log(jnp.asarray([[9.0, 1.0], [3.0, 1.0], [9.0, 1.0]]))
    got = _apply(logits, jnp.asarray([1, 1, 0]), name="flsd53")
    wanted = [0.9**5 * math.log(10), 0.75**3 * math.log(4), 0.1**3 * math.log(10 / 9)]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_brier_by_hand():
    logits = jnp.log(jnp.asarray([[3.0, 1.0], [3.0, 1.0]]))
    got = _apply(logits, jnp.asarray([0, 1]), name="brier")
    np.testing.assert_allclose(got, [2 / 16, 2 * 9 / 16], rtol=1e-6)
    got = _apply(logits[:1], jnp.asarray([[0.5, 0.5]]), name="brier")
    np.testing.assert_allclose(got, [2 / 16], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 5.0])
def test_focal_keeps_its_digits_where_the_model_is_sure(gamma):
    logits = jnp.asarray([[40.0, 0.0], [-40.0, 0.0], [1e4, 0.0]])
    labels = jnp.asarray([0, 0, 0])
    value = losses_lib.focal(logits, labels, gamma)
    # 1 - p = exp(-40), which float32 cannot tell from 0 as a difference
    np.testing.assert_allclose(value[1], 40.0, rtol=1e-5)
    gradient = jax.grad(lambda z: losses_lib.focal(z, labels, gamma).sum())(logits)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


def test_main_and_penalty_add_up():
    weight = jnp.asarray([1.0, 1, 0, 1, 2, 1])
    main = {"name": "brier", "temperature": 1.5}
    alone = class_loss(LossConfig(**main))
    both = {"weight": 2.0, "penalty": "mmce", "penalty_weight": 0.3, "smoothing": 0.2}
    got = class_loss(LossConfig(**main, **both))
    got = got.apply({}, LOGITS, LABELS, weight)
    share = PENALTIES["mmce"](LossConfig())(LOGITS / 1.5, LABELS, weight)
    smooth = losses_lib.smoothed(LABELS, LOGITS, 0.2)
    wanted = 2 * alone.apply({}, LOGITS, smooth, weight) + 0.3 * share
    real = np.asarray(weight) > 0
    np.testing.assert_allclose(got[real], wanted[real], rtol=1e-6)


EVERY = [
    *({"name": n} for n in LOSSES if n != "mse"),
    *({"penalty": n, "margin": 0.5} for n in PENALTIES),
    {"smoothing": 0.1},
    {"temperature": "learned"},
]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("config", EVERY, ids=str)
def test_weight_zero_is_dropping_the_row_even_one_of_nan(config, soft):
    loss = class_loss(LossConfig(**config))
    label = jax.nn.softmax(LOGITS[::-1]) if soft else LABELS
    weight = jnp.asarray([1.0, 0, 2, 1, 0, 1])
    kept = np.flatnonzero(weight)
    poisoned = LOGITS.at[1].set(jnp.nan).at[4].set(jnp.inf)

    def weighted(z, label, weight):
        return mean(loss.apply(loss.init(jax.random.key(0)), z, label, weight), weight)

    grad = jax.value_and_grad(weighted)
    value, gradient = grad(poisoned, label, weight)
    wanted, of_kept = grad(LOGITS[kept], label[kept], weight[kept])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient[kept], of_kept, atol=1e-6)
    assert not np.any(np.delete(gradient, kept, axis=0))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("config", EVERY, ids=str)
def test_a_class_that_a_row_lacks_is_left_out(config, soft):
    loss = class_loss(LossConfig(**config))
    two, label = LOGITS[:, :2], LABELS % 2
    three = jnp.concatenate([two, jnp.full((6, 1), ABSENT)], axis=1)
    shares = jax.nn.softmax(two[::-1])
    padded = jnp.pad(shares, [(0, 0), (0, 1)])

    def of(z, label):
        return loss.apply(loss.init(jax.random.key(0)), z, label).sum()

    wanted, of_two = jax.value_and_grad(of)(two, shares if soft else label)
    value, slope = jax.value_and_grad(of)(three, padded if soft else label)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(slope[:, :2], of_two, atol=1e-6)
    assert not slope[:, 2].any()


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
    np.testing.assert_allclose(training_loss.temperature_of(params), 1.7, rtol=1e-6)
    assert training_loss.temperature_of({}) == 1


def test_a_learned_temperature_starts_at_one():
    start = _apply(LOGITS, LABELS, temperature="learned")
    np.testing.assert_allclose(start, _apply(LOGITS, LABELS), rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("config", EVERY, ids=str)
def test_gradients_of_every_loss(config, soft):
    with jax.enable_x64(True):
        loss = class_loss(LossConfig(**config))
        logits = jnp.asarray(np.asarray(LOGITS), jnp.float64)
        label = jax.nn.softmax(logits[::-1]) if soft else jnp.asarray(LABELS)
        params = jax.tree.map(lambda x: x + 0.3, loss.init(jax.random.key(0)))
        check_grads(
            lambda p, z: loss.apply(p, z, label), (params, logits), 1, modes=["rev"]
        )


def test_gradients():
    with jax.enable_x64(True):
        logits = jnp.asarray(np.asarray(LOGITS), jnp.float64)
        labels = jnp.asarray(np.asarray(LABELS))
        loss = class_loss(LossConfig(temperature="learned"))
        params = {"log_t": jnp.asarray(0.3)}
        check_grads(lambda p, z: loss.apply(p, z, labels), (params, logits), 1)
        mse = number_loss(LossConfig())
        score = jnp.linspace(0.0, 5.0, 6)
        check_grads(lambda z: mse.apply({}, z, score), (logits,), 1)


def test_weight_zero_is_dropping_the_row():
    x, weight = jnp.asarray([1.0, 5.0, 3.0]), jnp.asarray([1.0, 0.0, 1.0])
    assert float(total(x, weight)) == 4.0
    poisoned = jnp.asarray([1.0, jnp.nan, 3.0])
    assert float(total(poisoned, weight)) == 4.0
    gradient = jax.grad(total)(poisoned, weight)
    np.testing.assert_array_equal(gradient, [1.0, 0.0, 1.0])


def test_the_total_is_weighted():
    got = total(jnp.asarray([1.0, 4.0]), jnp.asarray([2.0, 1.0]))
    assert float(got) == 6.0


def test_no_rows_give_a_finite_total_and_gradient():
    value, gradient = jax.value_and_grad(total)(jnp.ones(2), jnp.zeros(2))
    assert float(value) == 0 and not np.any(gradient)


def test_half_precision_is_widened_and_float64_kept():
    assert _apply(LOGITS.astype(jnp.bfloat16), LABELS).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(LOGITS, np.float64))
        for config in EVERY:
            got = _apply(wide, jnp.asarray([0] * 6), **config)
            assert got.dtype == jnp.float64
        got = _apply(wide, jnp.ones(6, jnp.float32), regression=True)
        assert got.dtype == jnp.float64


@pytest.mark.parametrize(
    ("config", "regression", "message"),
    [
        ({"name": "mse"}, False, "loss.name is 'mse'.*classes.*cross_entropy"),
        ({"name": "cross_entropy"}, True, "loss.name is 'cross_entropy'.*numbers.*mse"),
        ({"temperature": 2.0}, True, "temperature is 2.0.*mse has no temperature"),
        ({"penalty": "mmce"}, True, "penalty is 'mmce', but the loss mse has no"),
        ({"labels": "soft"}, True, "labels is 'soft'.*expected hard, or a task"),
        ({"smoothing": 0.1}, True, "smoothing is 0.1.*expected 0, or a task"),
        ({"weight": 0.0}, False, "weight is 0.0; expected above 0"),
        ({"weight": math.nan}, False, "weight is nan; expected a finite"),
    ],
)
def test_refuses(config, regression, message):
    with pytest.raises(UserError, match=message):
        (number_loss if regression else class_loss)(LossConfig(**config))
