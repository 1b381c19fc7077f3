"""The sign of a condition, which turns the logits of a negated description round."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sources
import tiny

from hypelora_jax import model as model_lib
from hypelora_jax import trees
from hypelora_jax.adapters import sign
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners.joins import signed
from hypelora_jax.keys import named_keys
from hypelora_jax.train.step import gradients
from hypelora_jax.types import ABSENT, Adapter, Conditions

ALPHA, ROWS = jnp.zeros(()), 6
ROW = np.array([2, 0, 1, 1, 0, 2], np.int32)


WIDTH = 6  # of the vectors: three parts of one layer


def ready(shake=True, **condition):
    own = {"sign": 1, "width": WIDTH, **condition}
    config = sources.settings("given", condition=own)
    built, params = sources.ready(config, shake)
    if shake:  # at first the sign is certain
        params["cond"]["sign"] |= {"bias": jnp.asarray(0.3)}
    return config, built, params


def batch(rows=ROWS, count=3):
    rng = np.random.default_rng(0)
    vectors = rng.normal(0.2, 2, (count, WIDTH)).astype(np.float32)
    return sources.on_device({**tiny.batch(rows), "condition": vectors})


def logits(built, params, given):
    return np.asarray(tiny.predict(built, params, given, ALPHA))


def test_at_first_the_sign_is_one():
    _, built, params = ready(shake=False)
    found = model_lib.conditions(built.parts, params, batch())
    np.testing.assert_array_equal(found.sign_U, np.ones(3))


def test_vectors_that_do_not_divide_into_parts_are_refused():
    with pytest.raises(UserError, match="of 7 layers, but a vector has 6 .* of 21"):
        ready(sign=7)


def test_a_sign_is_that_of_descriptions_alone():
    own = {"sign": 1, "width": WIDTH}
    config = sources.settings("text+noise", condition=own)
    with pytest.raises(UserError, match=r"condition.source is text\+noise; expected"):
        sources.ready(config)


def test_vectors_mirrored_at_w_have_one_adapter_and_opposite_logits():
    _, built, params = ready()
    axis = np.array([0.6, -0.8])
    w = np.concatenate([np.zeros(WIDTH - 2), 1.5 * axis])  # of the last part alone
    params["cond"]["sign"] |= {"axis": jnp.float32(axis), "bias": jnp.zeros(())}
    params["cond"]["sign"] |= {"kernel": jnp.float32(w)}
    x = np.asarray(batch()["condition"], np.float64)
    mirrored = x - 2 * np.outer(x @ w, w) / (w @ w)
    given = batch()
    other = {**given, "condition": jnp.asarray(mirrored, jnp.float32)}
    one, two = (built.adapt(params, b, ALPHA).factors for b in (given, other))
    for m in ("q", "v"):
        np.testing.assert_allclose(one[m]["b"], two[m]["b"], atol=1e-5)
    got, turned = logits(built, params, given), logits(built, params, other)
    np.testing.assert_allclose(turned, -got, atol=1e-4)
    assert np.abs(got).max() > 1e-2


@pytest.mark.parametrize("parts", [1, 3])
def test_all_parts_tell_the_sign_and_the_last_loses_what_lies_along_the_axis(parts):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 4, 5 * parts)), rng.normal(size=5 * parts)
    axis = rng.normal(size=5)
    axis /= np.linalg.norm(axis)
    params = {"kernel": w, "axis": axis, "bias": 0.3}
    left, got = signed(jax.tree.map(jnp.float32, params), jnp.float32(x))
    p = 1 / (1 + np.exp(-0.3 - x.mean(axis=1) @ w))
    np.testing.assert_allclose(got, 2 * p - 1, rtol=1e-4)
    np.testing.assert_allclose(left @ axis, np.zeros((3, 4)), atol=1e-5)
    last = x[..., -5:]
    np.testing.assert_allclose(
        left, last - (last @ axis)[..., None] * axis, rtol=1e-4, atol=1e-5
    )


def test_groups_indices_and_single_rows_have_the_sign_of_their_condition():
    _, built, params = ready()
    given = batch()
    mixed = logits(built, params, {**given, "row": jnp.asarray(ROW)})
    for b in range(ROWS):
        own = {n: x[b : b + 1] for n, x in tiny.batch(ROWS).items()}
        own |= {"condition": given["condition"][ROW[b]][None]}
        np.testing.assert_allclose(logits(built, params, own)[0], mixed[b], atol=1e-5)
    in_order = np.repeat(np.arange(3, dtype=np.int32), 2)
    indexed = logits(built, params, {**given, "row": jnp.asarray(in_order)})
    np.testing.assert_allclose(logits(built, params, given), indexed, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_sign_is_frozen_and_micro_batches_change_nothing(accumulate):
    _, built, params = ready()
    trainable, frozen = built.split(params)
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")
    given = {**batch(), "label": jnp.arange(ROWS) % tiny.CLASSES}
    given |= {"weight": jnp.ones(ROWS)}
    run = jax.jit(gradients(built, accumulate, deterministic=True))
    loss, _, slopes = run(trainable, frozen, given, ALPHA, keys)
    assert "sign" not in slopes["cond"]

    def whole(trainable):
        own = trees.union(trainable, frozen)
        z = built.classify(own, built.adapt(own, given, ALPHA), given)
        return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(ROWS), given["label"]])

    wanted, of_whole = jax.value_and_grad(whole)(trainable)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    chex.assert_trees_all_close(slopes, of_whole, rtol=1e-3, atol=1e-6)


def test_an_exported_head_has_the_sign_of_its_condition():
    config, built, params = ready()
    own = {**tiny.batch(ROWS), "condition": batch()["condition"][:1]}
    own = sources.on_device(own)
    found = model_lib.conditions(built.parts, params, own)
    head = sign.of_head(params["head"], found)
    adapter = built.adapt(params, own, ALPHA)
    bare = Adapter(sign.without(adapter.factors))
    got = built.classify({**params, "head": head}, bare, own)
    np.testing.assert_allclose(got, logits(built, params, own), rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(got) - built.classify(params, bare, own)).max() > 1e-3


def test_absent_classes_stay_absent_and_regressions_have_one_output():
    found = Conditions(jnp.zeros((2, 1, 1)), None, jnp.asarray([-2.0, 3.0]))
    factors = sign.joined({}, found)
    given = jnp.asarray([[1.0, ABSENT], [1.0, 4.0]])
    got = sign.signed(given, Adapter(factors))
    np.testing.assert_array_equal(got, [[-2, ABSENT], [3, 12]])
    got = sign.signed(jnp.ones(3), Adapter(factors, jnp.asarray([1, 0, 1])))
    np.testing.assert_array_equal(got, [3, -2, 3])
