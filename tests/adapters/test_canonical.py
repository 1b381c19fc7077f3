"""Canonical factors depend on the delta alone; z-scores are undone exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters.test_gram import COUNT, LAYERS, WIDTHS, adapters, dense, mixed

from hypelora_jax.adapters import canonical


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def same(left, right, atol=1e-10):
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


@pytest.mark.parametrize("rank", [1, 3, 6])  # 6 is more than the width 4 or 5
def test_canonical_factors_have_the_same_delta_and_shape(rank):
    lora = adapters(0, rank)
    found = jax.jit(canonical.canonical)(lora)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, lora)
    same(dense(found), dense(lora))


def test_canonical_factors_are_those_of_the_svd_with_its_sign_fixed():
    lora = adapters(0)
    found = canonical.canonical(lora)
    for m, f in found.items():
        s = np.linalg.svd(dense(lora)[m], compute_uv=False)[..., :2]
        aa = np.swapaxes(f["a"], -1, -2) @ f["a"]
        bb = f["b"] @ np.swapaxes(f["b"], -1, -2)
        for gram in (aa, bb):
            np.testing.assert_allclose(gram, s[..., None] * np.eye(2), atol=1e-10)
        assert (s[..., 0] > s[..., 1]).all()
        a = np.asarray(f["a"])
        top = np.take_along_axis(a, np.abs(a).argmax(-2)[..., None, :], axis=-2)
        assert (top > 0).all()


def test_canonical_is_idempotent_and_the_same_for_all_factors_of_a_delta():
    lora = adapters(0, rank=3)
    once = canonical.canonical(lora)
    same(canonical.canonical(once), once)
    same(canonical.canonical(mixed(lora)), once)
    signs = jax.tree.map(jnp.negative, lora)  # -A and -B
    same(canonical.canonical(signs), once)


def test_a_delta_of_lower_rank_leaves_exact_zeros():
    lora = adapters(0, rank=2)
    pad = {
        m: {
            "a": jnp.concatenate([f["a"], f["a"][..., :1]], axis=-1),
            "b": jnp.concatenate([f["b"], f["b"][..., :1, :]], axis=-2),
        }
        for m, f in lora.items()
    }
    found = canonical.canonical(jax.tree.map(lambda x: x.astype(jnp.float32), pad))
    for f in found.values():
        assert f["a"].dtype == jnp.float32
        assert not f["a"][..., 2:].any() and not f["b"][..., 2:, :].any()
        assert np.abs(f["a"][..., :2]).max(axis=-2).min() > 0
    same(dense(found), dense(pad), atol=1e-4)
    nothing = jax.tree.map(jnp.zeros_like, lora)
    same(canonical.canonical(nothing), nothing, atol=0)


def test_z_scores_have_mean_0_and_deviation_1_and_are_undone():
    lora = adapters(0)
    standard = canonical.standard(lora)
    scores = canonical.standardised(lora, standard)
    for x in jax.tree.leaves(scores):
        np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-10)
        np.testing.assert_allclose(x.std(axis=1), 1, rtol=1e-10)
    same(canonical.factors_of(scores, standard), lora)


def test_an_entry_that_hardly_varies_is_not_blown_up():
    lora = adapters(0)
    a = lora["q"]["a"]
    a = a.at[:, :, 0].set(1.0).at[:, 1, 0].add(1e-9)  # nearly the same in all
    b = jnp.ones_like(lora["q"]["b"])  # exactly the same in all
    standard = canonical.standard({"q": {"a": a, "b": b}}, floor=0.1)
    deviation = standard.deviation["q"]
    assert deviation["a"].shape == (LAYERS, WIDTHS["q"][0], 2)
    size = np.sqrt(np.mean(np.asarray(a).std(axis=1) ** 2, axis=(-2, -1)))
    np.testing.assert_allclose(
        deviation["a"][:, 0], 0.1 * np.repeat(size[:, None], 2, axis=1), rtol=1e-10
    )
    np.testing.assert_array_equal(deviation["b"], 1)
    scores = canonical.standardised({"q": {"a": a, "b": b}}, standard)
    assert scores["q"]["a"].shape[1] == COUNT
    assert np.abs(scores["q"]["a"][:, :, 0]).max() < 1e-6
