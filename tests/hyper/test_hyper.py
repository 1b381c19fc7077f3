"""Hyper-networks: zero delta, spread of A, modes of A, blending, purity, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax import model as model_lib
from hypelora_jax import trees
from hypelora_jax.adapters.sites import Site
from hypelora_jax.config.loading import load_settings
from hypelora_jax.config.settings import BlendConfig, HyperConfig
from hypelora_jax.errors import UserError
from hypelora_jax.hyper import factors
from hypelora_jax.train.optimizer import optimizer

METHODS = ("hyper_mlp", "hyper_transformer")
# For laws that hold for any trunk: the Transformer's, slow to compile, in soak.
QUICK = ("hyper_mlp", pytest.param("hyper_transformer", marks=pytest.mark.soak))
HALF = jnp.asarray(0.5)


def emitted(config, seed=0, key=None, alpha=HALF, shake=False):
    built = tiny.model(config)
    params = tiny.params(config, built, seed)
    if shake:
        params = tiny.shaken(params)
    cond = built.parts.cond.apply(params.get("cond", {}), {}).vectors_USC[0]
    return jax.jit(built.parts.hyper.apply)(params["hyper"], cond, alpha, key)


@pytest.mark.parametrize("a", ["generated", "fixed", "random"])
@pytest.mark.parametrize("method", METHODS)
def test_zero_delta_at_step_0_and_a_moves(method, a):
    lora = emitted(tiny.settings(method, hyper={"a": a}))
    for f in lora.values():
        assert not f["b"].any() and np.abs(f["a"]).max() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_generated_a_has_the_spread_of_lora_at_each_site(method):
    wide = tiny.settings(
        method, hyper={"widths": (64, 64), "width": 64}, lora={"rank": 16}
    )
    lora = emitted(wide)
    bound = 1 / np.sqrt(tiny.CONFIG.width)
    for f in lora.values():
        spread = np.asarray(f["a"]).std(axis=(1, 2))
        np.testing.assert_allclose(spread, bound / np.sqrt(3), rtol=0.15)
    a = lora["q"]["a"]
    assert np.abs(a[0] - a[1]).max() > 0.05, "sites start with different A"


def test_soften_is_the_identity_near_zero_and_odd_and_slow_beyond_the_knee():
    b = jnp.asarray([0.0, 1e-4, -1e-4, 1.0, -1.0])
    got = np.asarray(factors.soften(b), np.float64)
    np.testing.assert_allclose(got[:3], b[:3], rtol=1e-5)
    # 0.02 * ln(50 + sqrt(2501)): by hand
    np.testing.assert_allclose(got[3:], [0.0921054, -0.0921054], rtol=1e-5)
    assert jax.grad(factors.soften)(0.0) == 1.0


@pytest.mark.parametrize("width", [32, 512])
def test_one_step_of_adam_moves_the_factors_alike_at_every_width(width):
    # every kernel entry moves by lr against the sign of the gradient of one site
    lr, features_SF = (
        1e-3,
        factors.normalise(jax.random.normal(jax.random.key(0), (1, width))),
    )
    head = {"kernel": lr * jnp.sign(features_SF).T, "bias": jnp.zeros(1)}
    for factor, scale in factors.OUTPUT_SCALE.items():
        moved = float(factors.rows(head, features_SF, factor, True)[0, 0])
        # mean |x| of a standard normal is 0.8; `soften` takes a little of B's
        assert 0.6 < moved / (scale * lr) < 0.95


@pytest.mark.parametrize("method", QUICK)
def test_one_step_of_the_trunk_moves_b_little_at_the_demos_rate(method):
    """At the rate of everything else it moves B by 0.55 and 1.4 of its size."""
    config = load_settings(f"demo:method={method}")
    sites = {m: Site(16, 16, tuple(range(6))) for m in "qv"}
    build = model_lib.METHODS[method].network.build
    hyper = build(config.hyper, config.blend, sites, 2, config.hyper.cond_dim)
    keys = jax.random.split(jax.random.key(0), 4)
    cond = jax.random.normal(keys[0], (hyper.slots, config.hyper.cond_dim))
    optim = dataclasses.replace(config.optim, warmup=0.0)  # the peak rate
    tx = optimizer(optim, 10)

    @jax.jit
    def moved():
        params = hyper.init(keys[1])
        (heads,) = params["out"].values()
        kernel = heads["b"]["kernel"]  # as if it had trained for some steps
        heads["b"]["kernel"] = 0.02 * jax.random.normal(keys[2], kernel.shape)

        def b(tree):
            made = {**params, "trunk": tree["hyper"]["trunk"]}
            return jnp.stack([f["b"] for f in hyper.apply(made, cond, HALF).values()])

        tree = {"hyper": {"trunk": params["trunk"]}}
        before, pull = jax.vjp(b, tree)
        (grads,) = pull(jax.random.normal(keys[3], before.shape))
        updates, _ = tx.update(grads, tx.init(tree), tree)
        after = b(jax.tree.map(jnp.add, tree, updates))
        return jnp.linalg.norm(after - before) / jnp.linalg.norm(before)

    assert 0.01 < moved() < 0.3


@pytest.mark.parametrize("method", METHODS)
def test_gradient_reaches_b_at_step_0(method):
    config = tiny.settings(method)
    built = tiny.model(config)
    params = tiny.params(config, built)
    cond = built.parts.cond.apply(params["cond"], {}).vectors_USC[0]

    def total(hyper):
        lora = built.parts.hyper.apply(hyper, cond, HALF)
        return sum(jnp.sum(jnp.sin(f["b"] + f["a"][:, :2, :1])) for f in lora.values())

    grads = trees.flatten(jax.jit(jax.grad(total))(params["hyper"]))
    heads = [p for p in grads if p.startswith("out/")]
    assert heads and all(np.abs(grads[p]).max() > 0 for p in heads)


def test_reference_initialisation_has_torchs_bounds_and_one_head():
    config = tiny.settings("hyper_transformer", hyper={"init": "reference"})
    built = tiny.model(config)
    hyper = tiny.params(config, built)["hyper"]
    (group,) = hyper["out"].values()
    assert set(group) == {"ab"}
    kernel = np.asarray(group["ab"]["kernel"])
    assert 0.9 / 4 < np.abs(kernel).max() <= 1 / 4  # U(+-1/sqrt(16))
    assert (hyper["trunk"]["layer0"]["up"]["kernel"] != 0).any()
    lora = emitted(config)
    assert np.abs(lora["q"]["b"]).max() > 0, "the reference's delta is not zero"


def test_reference_layers_start_equal_and_ours_do_not():
    for init, same in (("reference", True), ("zero", False)):
        config = tiny.settings("hyper_transformer", hyper={"init": init, "depth": 2})
        trunk = tiny.params(config, tiny.model(config))["hyper"]["trunk"]
        pairs = zip(
            jax.tree.leaves(trunk["layer0"]["up"]),
            jax.tree.leaves(trunk["layer1"]["up"]),
            strict=True,
        )
        assert all((x == y).all() for x, y in pairs) == same


def test_fixed_a_by_either_scale():
    site = {"q": Site(400, 400, tuple(range(6)))}
    for a_init, bound in (("lora", 1 / 20), ("reference", 1 / np.sqrt(8))):
        config = HyperConfig(a="fixed", a_init=a_init)
        a = np.asarray(factors.draw_all_a(jax.random.key(0), site, 8, config)["q"])
        assert 0.98 * bound < np.abs(a).max() <= bound


@pytest.mark.parametrize("method", METHODS)
def test_random_a_is_drawn_by_key_and_deterministic_without(method):
    config = tiny.settings(method, hyper={"a": "random"})
    one, two = (emitted(config, key=jax.random.key(i))["q"]["a"] for i in (1, 2))
    assert np.abs(one - two).max() > 0.01
    assert (emitted(config)["q"]["a"] == emitted(config)["q"]["a"]).all()
    other_seed = emitted(config, seed=3)["q"]["a"]
    assert np.abs(emitted(config)["q"]["a"] - other_seed).max() > 0.01


def test_blending_by_hand():
    made, start = jnp.asarray([2.0]), jnp.asarray([10.0])
    assert factors.blend("add", made, start, 0.25) == 0.75 * 2 + 0.25 * 10
    assert factors.blend("multiply", made, start, 0.25) == 20


@pytest.mark.parametrize(
    "a, b", [("add", "add"), ("multiply", "replace"), ("add", "replace")]
)
def test_blending_uses_the_frozen_factors(a, b):
    blended = tiny.settings(blend={"a": a, "b": b, "alpha": 0.5})
    plain = tiny.settings()
    built = tiny.model(blended)
    params = tiny.shaken(tiny.params(blended, built))
    cond = params["cond"]["embedding"]
    got = jax.jit(built.parts.hyper.apply)(params["hyper"], cond, HALF)
    made = jax.jit(tiny.model(plain).parts.hyper.apply)(params["hyper"], cond, HALF)
    start = params["hyper"]["init"]
    for factor, mode in (("a", a), ("b", b)):
        for module in got:
            wanted = made[module][factor]
            if mode != "replace":
                wanted = factors.blend(mode, wanted, start[factor][module], 0.5)
            np.testing.assert_allclose(got[module][factor], wanted, atol=1e-6)


def test_multiply_by_a_zero_b_is_refused():
    with pytest.raises(UserError, match="stay zero"):
        BlendConfig(b="multiply")
    assert BlendConfig(b="multiply", b_init="lora").b == "multiply"


@pytest.mark.parametrize("method", QUICK)
def test_non_square_sites_have_their_own_head(method):
    config = tiny.settings(method, lora={"targets": ("q", "up", "down")})
    lora = emitted(config, shake=True)
    width, ff = tiny.CONFIG.width, tiny.CONFIG.ff
    assert lora["up"]["a"].shape == (3, width, 2) and lora["up"]["b"].shape == (
        3,
        2,
        ff,
    )
    assert lora["down"]["a"].shape == (3, ff, 2)
    assert lora["down"]["b"].shape == (3, 2, width)


GIVEN = {"source": "given", "width": 5}


@pytest.mark.parametrize("cond", ["learned", "onehot"])
@pytest.mark.parametrize("method", METHODS)
def test_conditioning_kinds(method, cond):
    config = tiny.settings(method, hyper={"cond": cond})
    built = tiny.model(config)
    params = tiny.params(config, built)
    slots = built.parts.hyper.slots
    assert slots == (12 if method == "hyper_transformer" else 6)
    got = built.parts.cond.apply(params.get("cond", {}), {}).vectors_USC
    assert got.shape == (1, slots, slots if cond == "onehot" else 5)
    assert ("cond" in params) == (cond == "learned")


@pytest.mark.parametrize(
    ("join", "width", "leaves"),
    [
        ("concat", 10, {"embedding"}),
        ("sum", 5, {"embedding", "project"}),
        ("replace", 5, set()),
    ],
)
def test_given_vectors_join_the_descriptions_of_the_sites(join, width, leaves):
    config = tiny.settings(condition=GIVEN | {"join": join})
    built = tiny.model(config)
    params = tiny.params(config, built).get("cond", {})
    assert set(params) == leaves and built.parts.cond.width == width
    vectors_UC = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    got = built.parts.cond.apply(params, {"condition": jnp.asarray(vectors_UC)})
    assert got.vectors_USC.shape == (3, 6, width) and got.row_B is None
    for u, vector in enumerate(vectors_UC):
        for s in range(6):
            wanted = vector
            if join == "concat":
                wanted = np.concatenate([params["embedding"][s], vector])
            elif join == "sum":
                kernel = np.asarray(params["project"]["kernel"])
                wanted = params["embedding"][s] + vector @ kernel
            np.testing.assert_allclose(got.vectors_USC[u, s], wanted, atol=1e-5)
    by_slot = jnp.asarray(np.repeat(vectors_UC[:, None], 6, axis=1))
    row = jnp.asarray([2, 0, 1, 1], jnp.int32)
    same = built.parts.cond.apply(params, {"condition": by_slot, "row": row})
    np.testing.assert_allclose(same.vectors_USC, got.vectors_USC, atol=1e-6)
    assert same.row_B is row


def test_standardised_vectors_have_mean_0_and_deviation_1():
    config = tiny.settings(condition=GIVEN | {"standardise": True, "join": "replace"})
    built = tiny.model(config)
    params = tiny.params(config, built)
    trainable, frozen = built.split(params)
    assert "cond" not in trainable and set(frozen["cond"]["standard"]) == {
        "mean",
        "std",
    }
    vectors = np.random.default_rng(0).normal(3, 7, (50, 5)).astype(np.float32)
    found = dict(zip(("mean", "std"), (vectors.mean(0), vectors.std(0)), strict=True))
    got = built.parts.cond.apply({"standard": found}, {"condition": vectors})
    x = np.asarray(got.vectors_USC[:, 0])
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-5)


def test_given_conditioning_that_is_absent_or_misshaped_is_refused():
    built = tiny.model(tiny.settings(condition=GIVEN))
    wrong = jnp.ones((6, 4)), jnp.ones((2, 3, 5))
    for batch in ({}, *({"condition": x} for x in wrong)):
        with pytest.raises(UserError, match=r"\(U, 5\) or \(U, 6, 5\)"):
            built.parts.cond.apply({}, batch)
    with pytest.raises(UserError, match="needs a vector with each example"):
        tiny.model(tiny.settings(condition={"source": "given"}))
    with pytest.raises(UserError, match="condition.join .*'add'; expected one of"):
        tiny.model(tiny.settings(condition=GIVEN | {"join": "add"}))


@pytest.mark.parametrize("method", QUICK)
def test_a_as_input(method):
    # in canonical order k comes after q, in a sorted dict before it
    config = tiny.settings(
        method, hyper={"a": "fixed", "a_input": True}, lora={"targets": ("q", "k")}
    )
    built = tiny.model(config)
    params = tiny.shaken(tiny.params(config, built))
    cond = params["cond"]["embedding"]
    before = jax.jit(built.parts.hyper.apply)(params["hyper"], cond, HALF)["q"]["b"]
    a = {m: x + 1.0 for m, x in params["hyper"]["a"].items()}
    after = jax.jit(built.parts.hyper.apply)({**params["hyper"], "a": a}, cond, HALF)[
        "q"
    ]["b"]
    assert np.abs(before - after).max() > 1e-4, "B sees A"
    canonical = {m: params["hyper"]["a"][m] for m in ("q", "k")}
    eager = built.parts.hyper.apply({**params["hyper"], "a": canonical}, cond, HALF)
    np.testing.assert_allclose(eager["q"]["b"], before, atol=1e-5)


@pytest.mark.parametrize(
    "hyper, lora, part",
    [
        ({"a_input": True}, {}, "own input"),
        ({"a_input": True, "a": "fixed"}, {"targets": ("q", "down")}, "one d_in"),
        ({"layers": (7,)}, {}, "has layer 7"),
    ],
)
def test_refusals(hyper, lora, part):
    with pytest.raises(UserError, match=part):
        tiny.model(tiny.settings(hyper=hyper, lora=lora))


def test_transformer_refusals():
    with pytest.raises(UserError, match="divisible"):
        tiny.model(tiny.settings("hyper_transformer", hyper={"heads": 3}))
    square = {"hyper": {"init": "reference"}, "lora": {"targets": ("q", "up")}}
    with pytest.raises(UserError, match="square"):
        tiny.model(tiny.settings("hyper_transformer", **square))


def test_transformer_dropout_only_with_a_key():
    config = tiny.settings("hyper_transformer", hyper={"dropout": 0.5})
    built = tiny.model(config)
    params = tiny.shaken(tiny.params(config, built))
    cond, run = params["cond"]["embedding"], jax.jit(built.parts.hyper.apply)

    def b(key):
        return run(params["hyper"], cond, HALF, key)["q"]["b"]

    assert (b(None) == b(None)).all()
    assert np.abs(b(jax.random.key(0)) - b(None)).max() > 1e-4


@pytest.mark.parametrize("method", QUICK)
def test_emission_is_pure(method):
    config = tiny.settings(method, hyper={"a": "random"})
    built = tiny.model(config)
    params = tiny.shaken(tiny.params(config, built))
    cond, key = params["cond"]["embedding"], jax.random.key(5)
    apply = built.parts.hyper.apply
    run = jax.jit(apply)
    once, twice = (
        run(params["hyper"], cond, HALF, key),
        run(params["hyper"], cond, HALF, key),
    )
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), once, twice))
    shapes = jax.eval_shape(apply, params["hyper"], cond, HALF, key)
    assert jax.tree.all(jax.tree.map(lambda s, x: s.shape == x.shape, shapes, once))
    stacked = jax.jit(jax.vmap(apply, (None, 0, None, None)))(
        params["hyper"], jnp.stack([cond, cond]), HALF, key
    )
    close = jax.tree.map(lambda s, x: np.abs(s[1] - x).max() < 1e-5, stacked, once)
    assert jax.tree.all(close)
    total = jax.value_and_grad(lambda h: apply(h, cond, HALF, key)["v"]["b"].sum())
    value, grads = jax.jit(total)(params["hyper"])
    np.testing.assert_allclose(value, once["v"]["b"].sum(), rtol=1e-4)
    assert jax.tree.all(jax.tree.map(lambda g: np.isfinite(g).all(), grads))
