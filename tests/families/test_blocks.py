"""Blocks: hand numbers, dropout's statistics, masks and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import ndtr

from hypelora_jax.families.blocks.activations import ACTIVATION
from hypelora_jax.families.blocks.attention import attention
from hypelora_jax.families.blocks.dense import LoraDense
from hypelora_jax.families.blocks.layer import LayerNorm
from hypelora_jax.families.blocks.masks import dropout
from hypelora_jax.keys import mask_key


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("last", [6, 7])  # even and odd last axes draw differently
def test_dropout_keeps_the_mean_and_the_rate(last):
    x = jnp.ones((20_000, last))
    y = dropout(x, 0.1, jax.random.key(0))
    zero = float(jnp.mean(y == 0))
    error = math.sqrt(0.1 * 0.9 / x.size)
    assert abs(zero - 0.1) < 5 * error
    np.testing.assert_allclose(jnp.mean(y), 1, atol=6 * error)
    np.testing.assert_allclose(jnp.max(y), 1 / 0.9, rtol=1e-4)
    columns = jnp.corrcoef((y == 0).T.astype(jnp.float32)) - jnp.eye(last)
    assert float(jnp.max(jnp.abs(columns))) < 5 / math.sqrt(len(x))


def test_dropout_without_a_key_or_a_rate_is_the_identity():
    x = draw(0, 3, 4)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_hashed_mask_has_its_rate(rate):
    y = dropout(jnp.ones((500, 200)), rate, mask_key(jax.random.key(0), "hash"))
    sigma = math.sqrt(rate * (1 - rate) / y.size)
    assert abs(float(jnp.mean(y == 0)) - rate) < 4 * sigma
    np.testing.assert_allclose(jnp.max(y), 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("masks", ["hash", "hardware", "threefry"])
def test_forward_and_backward_and_a_remat_draw_the_same_mask(masks):
    key = mask_key(jax.random.key(4), masks)
    x, weight = draw(0, 50, 40), draw(1, 50, 40)
    plain = lambda x: jnp.sum(weight * dropout(x, 0.3, key))  # noqa: E731
    kept = np.asarray(dropout(jnp.ones_like(x), 0.3, key))
    for f in (plain, jax.checkpoint(plain)):
        np.testing.assert_array_equal(jax.jit(jax.grad(f))(x), weight * kept)
    residuals = jax.linearize(lambda x: dropout(x, 0.3, key), x)[1]
    assert not any(c.shape == x.shape for c in jax.tree.leaves(residuals))


def test_each_position_that_is_read_gets_what_it_gets_among_all():
    q, k, v = (draw(i, 2, 5, 4) for i in range(3))
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    whole = attention(q, k, v, mask, 2, 0.0, None)
    np.testing.assert_allclose(
        attention(q[:, 1:3], k, v, mask, 2, 0.0, None), whole[:, 1:3], atol=1e-6
    )
    by_query = jnp.broadcast_to(mask[:, None, :], (2, 5, 5))
    np.testing.assert_array_equal(attention(q, k, v, by_query, 2, 0.0, None), whole)


def test_gelu_hand_numbers():
    x = jnp.array([-1.0, 0.0, 1.0, 2.0])
    phi = [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    wanted = [v * p for v, p in zip(x.tolist(), phi, strict=True)]
    np.testing.assert_allclose(ACTIVATION["gelu"](x), wanted, atol=1e-6)
    np.testing.assert_allclose(
        ACTIVATION["gelu_new"](x), [-0.1588, 0, 0.8412, 1.9546], atol=1e-4
    )
    np.testing.assert_array_equal(ACTIVATION["relu"](x), [0, 0, 1, 2])


@pytest.mark.parametrize(
    ("low", "high", "ulps", "absolute"),
    [(0, 14, 3, 1.5e-6), (-1, 0, 6, 1e-7), (-2, -1, 52, 2e-7), (-14, -2, None, 8e-7)],
)
def test_gelu_is_as_exact_as_its_docstring_says(low, high, ulps, absolute):
    x = np.linspace(low, high, 200_001, dtype=np.float32)
    exact = x.astype(np.float64) * ndtr(x.astype(np.float64))
    error = np.abs(np.asarray(jax.jit(ACTIVATION["gelu"])(x), np.float64) - exact)
    assert error.max() <= absolute
    if ulps is not None:
        assert (error <= ulps * np.spacing(np.abs(exact).astype(np.float32))).all()
    slope = jax.jit(jax.vmap(jax.grad(ACTIVATION["gelu"])))(x)
    density = np.exp(-0.5 * x.astype(np.float64) ** 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(
        slope, ndtr(x.astype(np.float64)) + x * density, 0, 2.5e-7
    )


def test_layer_norm_hand_numbers():
    params = {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, 1.0])}
    y = LayerNorm(eps=0.0).apply({"params": params}, jnp.array([[1.0, 3.0]]))
    np.testing.assert_allclose(y, [[-1.0, 3.0]], atol=1e-6)


def test_lora_dense_is_w_plus_ab():
    x, kernel, a, b = draw(0, 6, 5), draw(1, 5, 4), draw(2, 5, 2), draw(3, 2, 4)
    params = {"kernel": kernel, "bias": jnp.arange(4.0)}
    y = LoraDense(4).apply({"params": params}, x, (2, 3), {"a": a, "b": b}, None)
    wanted = np.asarray(x) @ np.asarray(kernel + a @ b) + np.arange(4.0)
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_lora_dropout_acts_on_the_adapter_alone():
    x, rows = draw(0, 6, 6), (2, 3)
    params = {"kernel": draw(1, 6, 4), "bias": jnp.zeros(4)}
    dense, key = LoraDense(4, dropout=0.5), jax.random.key(0)
    zero = {"a": draw(2, 6, 2), "b": jnp.zeros((2, 4))}
    plain = dense.apply({"params": params}, x, rows, None, None)
    same = dense.apply({"params": params}, x, rows, zero, key)
    np.testing.assert_array_equal(same, plain)
    full = {"a": draw(2, 6, 2), "b": draw(3, 2, 4)}
    dropped = dense.apply({"params": params}, x, rows, full, key)
    kept = dense.apply({"params": params}, x, rows, full, None)
    assert float(jnp.max(jnp.abs(dropped - kept))) > 0.1


def test_attention_ignores_what_is_masked():
    q, k, v = (draw(i, 1, 3, 4) for i in range(3))
    mask = jnp.array([[True, True, False]])
    out = attention(q, k, v, mask, 2, 0.0, None)
    short = attention(q[:, :2], k[:, :2], v[:, :2], mask[:, :2], 2, 0.0, None)
    np.testing.assert_allclose(out[:, :2], short, atol=1e-6)


def test_attention_and_its_gradient_stay_finite_without_any_token():
    q, k, v = (draw(i, 1, 3, 4) for i in range(3))
    none = jnp.zeros((1, 3), bool)

    def total(q, k, v):
        return jnp.sum(attention(q, k, v, none, 2, 0.0, None))

    value, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
    assert jnp.isfinite(value)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)


def test_gradients_of_attention_norm_and_gelu():
    mask = jnp.array([[True, True, False]])
    params = {"scale": draw(3, 4), "bias": draw(4, 4)}

    def f(q, k, v):
        x = attention(q, k, v, mask, 2, 0.0, None)
        x = LayerNorm(1e-5).apply({"params": params}, x + q)
        return ACTIVATION["gelu"](x)

    with jax.enable_x64(True):
        args = [jnp.asarray(draw(i, 1, 3, 4), jnp.float64) for i in range(3)]
        check_grads(f, args, order=1, modes=["rev"])
