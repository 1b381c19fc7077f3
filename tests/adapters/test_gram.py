"""Gram matrices give what dense deltas give, and factors count only by their delta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypelora_jax.adapters import gram

LAYERS, COUNT = 2, 3
WIDTHS = {"q": (7, 5), "up": (4, 9)}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def adapters(seed, rank=2, count=COUNT, dtype=np.float64):
    """Factors a_LUIR and b_LURO of random adapters; a_LIR and b_LRO for count=0."""
    rng = np.random.default_rng(seed)
    lead = (LAYERS, count) if count else (LAYERS,)

    def one(i, o):
        a, b = rng.normal(size=(*lead, i, rank)), rng.normal(size=(*lead, rank, o))
        return {"a": jnp.asarray(a, dtype), "b": jnp.asarray(b, dtype)}

    return {m: one(*widths) for m, widths in WIDTHS.items()}


def dense(lora):
    return {m: np.asarray(f["a"] @ f["b"]) for m, f in lora.items()}


def mixed(lora, seed=9):
    """The same deltas by other factors, A G and G^-1 B."""
    rng = np.random.default_rng(seed)
    out = {}
    for m, f in lora.items():
        g = jnp.asarray(rng.normal(size=f["b"].shape[:-2] + (f["a"].shape[-1],) * 2))
        out[m] = {"a": f["a"] @ g, "b": jnp.linalg.inv(g) @ f["b"]}
    return out


def repeated(lora):
    """The first adapter in place of each."""

    def first(x):
        return jnp.broadcast_to(x[:, :1], x.shape)

    return {m: {n: first(x) for n, x in f.items()} for m, f in lora.items()}


def of_site(x):
    return np.sum(x, axis=(-2, -1))


def test_gram_equals_dense_whatever_the_ranks():
    left, right = adapters(0, rank=2), adapters(1, rank=3)
    dense_left, dense_right = dense(left), dense(right)
    losses, cosines = gram.relative_losses(left, right), gram.cosines(left, right)
    for m in WIDTHS:
        x, y = dense_left[m], dense_right[m]
        wanted = {
            "inner": of_site(x * y),
            "squared_norm": of_site(x**2),
            "squared_distance": of_site((x - y) ** 2),
            "loss": of_site((x - y) ** 2) / of_site(y**2),
            "cosine": of_site(x * y) / np.sqrt(of_site(x**2) * of_site(y**2)),
        }
        found = {
            "inner": gram.inner(left[m], right[m]),
            "squared_norm": gram.squared_norm(left[m]),
            "squared_distance": gram.squared_distance(left[m], right[m]),
            "loss": losses[m],
            "cosine": cosines[m],
        }
        for name, x in wanted.items():
            assert x.shape == (LAYERS, COUNT)
            np.testing.assert_allclose(
                found[name], x, rtol=1e-10, atol=1e-10, err_msg=name
            )


def test_only_the_delta_counts():
    left, right = adapters(0), adapters(1)
    others = mixed(left), mixed(right, seed=8)
    for of in (gram.relative_losses, gram.cosines):
        wanted, found = of(left, right), of(*others)
        for m in WIDTHS:
            np.testing.assert_allclose(found[m], wanted[m], rtol=1e-9)


def test_spread_equals_dense():
    lora = adapters(0)
    found, same = gram.spread(lora), gram.spread(repeated(lora))
    for m, x_LUIO in dense(lora).items():
        apart = (x_LUIO - x_LUIO.mean(axis=1, keepdims=True)) ** 2
        for got, wanted in zip(found[m], (apart, x_LUIO**2), strict=True):
            np.testing.assert_allclose(got, wanted.sum(axis=(1, 2, 3)), rtol=1e-10)
        between, moment = same[m]
        assert between.shape == (LAYERS,) and (between >= 0).all()
        np.testing.assert_array_less(between, 1e-14 * moment)


def test_no_array_is_as_large_as_a_delta():
    def run(left, right):
        return gram.relative_losses(left, right)

    wide = {"q": {"a": jnp.ones((1, 40, 2)), "b": jnp.ones((1, 2, 50))}}
    traced = jax.make_jaxpr(jax.grad(lambda x, y: run(x, y)["q"].sum()))(wide, wide)
    sizes = [v.aval.size for eqn in traced.eqns for v in eqn.outvars]
    assert sizes and max(sizes) < 40 * 50


def test_float32_and_less_are_computed_in_float32():
    left, right = (adapters(i, dtype=jnp.bfloat16) for i in (0, 1))
    got = gram.squared_distance(left["q"], right["q"])
    assert got.dtype == jnp.float32
    exact = [jax.tree.map(lambda x: x.astype(jnp.float64), t) for t in (left, right)]
    wanted = gram.squared_distance(exact[0]["q"], exact[1]["q"])
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert float(jnp.min(gram.squared_distance(left["q"], left["q"]))) >= 0


def test_gradients_are_those_of_dense_deltas_and_finite_at_zero():
    made, target = adapters(0), adapters(1)

    def ours(made):
        return sum(x.sum() for x in gram.relative_losses(made, target).values())

    def plain(made):
        total = 0.0
        for m, f in made.items():
            x, y = f["a"] @ f["b"], target[m]["a"] @ target[m]["b"]
            error, size = ((z**2).sum(axis=(-2, -1)) for z in (x - y, y))
            total += (error / size).sum()
        return total

    for x, y in zip(
        jax.tree.leaves(jax.grad(ours)(made)),
        jax.tree.leaves(jax.grad(plain)(made)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
    empty = {m: {"a": f["a"], "b": jnp.zeros_like(f["b"])} for m, f in made.items()}
    nothing = jax.tree.map(jnp.zeros_like, made)

    def both(x, y):
        parts = (gram.relative_losses(x, y), gram.cosines(x, y))
        return sum(z.sum() for z in jax.tree.leaves(parts))

    for start in (empty, nothing):
        for pair in ((start, target), (target, start), (start, start)):
            value, slopes = jax.value_and_grad(both, argnums=(0, 1))(*pair)
            assert np.isfinite(value)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    slopes = jax.grad(ours)(empty)  # B leaves zero, as in any LoRA
    assert all(np.abs(f["b"]).min() > 0 for f in slopes.values())
    for m in WIDTHS:
        np.testing.assert_array_equal(gram.relative_losses(empty, target)[m], 1)


def test_stacked_adapters_keep_their_deltas():
    several = [adapters(0, rank=2, count=0), adapters(1, rank=3, count=0)]
    both = gram.stacked(several)
    for m in WIDTHS:
        assert both[m]["a"].shape[:2] == (LAYERS, 2) and both[m]["a"].shape[-1] == 3
        for u, one in enumerate(several):
            np.testing.assert_allclose(dense(both)[m][:, u], dense(one)[m], atol=1e-12)


def test_the_mean_adapter_has_the_mean_delta():
    lora = adapters(0)
    found = dense(gram.mean(lora))
    for m, x in dense(lora).items():
        np.testing.assert_allclose(found[m], x.mean(axis=1), atol=1e-12)


def test_recovery_of_the_mean_is_0_and_of_the_targets_1():
    targets = adapters(0)
    of_mean = gram.mean(targets)
    same = jax.tree.map(lambda x: jnp.repeat(x[:, None], COUNT, axis=1), of_mean)
    for made, wanted in ((same, 0), (mixed(targets), 1)):
        found = gram.recovery(made, targets, of_mean)
        np.testing.assert_allclose(found.whole, wanted, atol=1e-10)
        for m in WIDTHS:
            assert found.sites[m].shape == (LAYERS,)
            np.testing.assert_allclose(found.sites[m], wanted, atol=1e-10)


def test_recovery_equals_the_dense_one():
    made, targets, of_mean = adapters(0), adapters(1, rank=3), gram.mean(adapters(2))
    found = gram.recovery(made, targets, of_mean)
    errors = totals = 0
    for m in WIDTHS:
        d, t, mean = (dense(x)[m] for x in (made, targets, of_mean))
        error = ((d - t) ** 2).sum(axis=(1, 2, 3))
        total = ((t - mean[:, None]) ** 2).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(found.sites[m], 1 - error / total, rtol=1e-10)
        errors, totals = errors + error.sum(), totals + total.sum()
    np.testing.assert_allclose(found.whole, 1 - errors / totals, rtol=1e-10)


def test_other_modules_are_refused():
    left = adapters(0)
    with pytest.raises(ValueError, match=r"\['q', 'up'\], the other \['q'\]"):
        gram.relative_losses(left, {"q": left["q"]})
    with pytest.raises(ValueError, match="expected at least one"):
        gram.stacked([])
