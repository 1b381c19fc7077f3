"""Laws of prediction: merging, zero delta, padding, what trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax import trees
from hypelora_jax.adapters import lora
from hypelora_jax.types import Adapter

METHODS = ("lora", "hyper_mlp", "hyper_transformer")
ALPHA = jnp.zeros(())


def ready(method="hyper_mlp", shake=True, **sections):
    config = tiny.settings(method, **sections)
    model = tiny.model(config)
    params = tiny.params(config, model)
    if shake:
        own = {n: x for n, x in params.items() if n not in ("backbone", "head")}
        params = {**params, **tiny.shaken(own)}
    return config, model, params


def logits(model, params, batch):
    return np.asarray(tiny.predict(model, params, batch, ALPHA))


@pytest.mark.parametrize("method", METHODS)
def test_merged_equals_factored(method):
    _, model, params = ready(method, lora={"targets": ("q", "v", "up")})
    batch = tiny.batch()
    adapter = jax.jit(model.adapt)(params, {}, ALPHA)
    merged = {**params, "backbone": lora.merge(params["backbone"], adapter.factors)}
    classify = jax.jit(model.classify)
    plain = np.asarray(classify(merged, Adapter({}), batch))
    factored = logits(model, params, batch)
    np.testing.assert_allclose(factored, plain, atol=2e-5)
    without = np.asarray(classify(params, Adapter({}), batch))
    assert np.abs(factored - without).max() > 1e-3, "the adapter does something"


@pytest.mark.parametrize("method", METHODS)
def test_zero_delta_at_step_0_leaves_the_base_model_unchanged(method):
    _, model, params = ready(method, shake=False)
    batch = tiny.batch()
    base = jax.jit(model.classify)(params, Adapter({}), batch)
    np.testing.assert_allclose(logits(model, params, batch), base, atol=1e-6)


def test_padding_rows_and_tokens_change_nothing():
    _, model, params = ready()
    batch = tiny.batch(rows=4, tokens=9)
    wide = {
        "ids": jnp.pad(batch["ids"], ((0, 3), (0, 5)), constant_values=1),
        "mask": jnp.pad(batch["mask"], ((0, 3), (0, 5))),
        "types": jnp.pad(batch["types"], ((0, 3), (0, 5))),
    }
    got = logits(model, params, wide)
    np.testing.assert_allclose(got[:4], logits(model, params, batch), atol=1e-5)
    assert np.isfinite(got).all(), "rows of padding alone stay finite"


@pytest.mark.parametrize("method", METHODS)
def test_the_key_changes_logits_only_when_given(method):
    _, model, params = ready(method, lora={"dropout": 0.3})
    batch = tiny.batch()

    def run(key):
        return tiny.predict(model, params, batch, ALPHA, key)

    one, two = run(jax.random.key(1)), run(jax.random.key(2))
    assert np.abs(one - two).max() > 1e-4
    np.testing.assert_array_equal(one, run(jax.random.key(1)))


def test_static_lora_beside_the_hyper_network():
    config, model, params = ready(hyper={"layers": (2,)})
    assert params["lora"]["q"]["a"].shape[0] == 2
    trainable, frozen = model.split(params)
    assert set(trainable) == {"hyper", "cond", "lora", "head"}
    batch = tiny.batch()
    before = logits(model, params, batch)
    lora_off = {**params, "lora": jax.tree.map(jnp.zeros_like, params["lora"])}
    assert np.abs(before - logits(model, lora_off, batch)).max() > 1e-4
    np.testing.assert_allclose(
        logits(model, trees.union(trainable, frozen), batch), before, atol=1e-5
    )


@pytest.mark.parametrize(
    "method, a, trained, not_trained",
    [
        ("full", "generated", {"backbone", "head"}, set()),
        ("head", "generated", {"head"}, {"backbone"}),
        ("lora", "generated", {"lora", "head"}, {"backbone"}),
        ("lora_frozen_a", "generated", {"lora", "head"}, {"backbone", "lora"}),
        ("hyper_mlp", "generated", {"hyper", "cond", "head"}, {"backbone"}),
        ("hyper_mlp", "fixed", {"hyper", "cond", "head"}, {"backbone", "hyper"}),
        (
            "hyper_transformer",
            "random",
            {"hyper", "cond", "head"},
            {"backbone", "hyper"},
        ),
    ],
)
def test_what_trains(method, a, trained, not_trained):
    _, model, params = ready(method, hyper={"a": a}, shake=False)
    trainable, frozen = model.split(params)
    assert set(trainable) == trained and set(frozen) == not_trained
    joined = trees.flatten(trees.union(trainable, frozen))
    assert joined.keys() == trees.flatten(params).keys()
    if "hyper" in not_trained:
        assert set(frozen["hyper"]) == {"a"}
    if "lora" in not_trained:
        assert all(set(f) == {"a"} for f in frozen["lora"].values())


def test_learned_temperature_trains():
    _, model, params = ready(loss={"temperature": "learned"}, shake=False)
    trainable, _ = model.split(params)
    assert trainable["loss"]["log_t"] == 0
