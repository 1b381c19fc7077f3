"""Laws of the step: accumulation, frozen leaves, one trace, padding, decay."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from hypelora_jax import model as model_lib
from hypelora_jax import trees
from hypelora_jax.config.settings import BlendConfig, MeshConfig, OptimConfig
from hypelora_jax.keys import named_keys
from hypelora_jax.sharding.mesh import make_mesh, replicated
from hypelora_jax.train import optimizer
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step, gradients

ALPHA = jnp.zeros(())


TRANSFORMER = "hyper_transformer"


def soak(*methods):
    """Methods whose steps take long to compile: in make soak only."""
    return [pytest.param(method, marks=pytest.mark.soak) for method in methods]


def ready(method="hyper_mlp", **sections):
    config = tiny.settings(method, **sections)
    model = tiny.model(config)
    params = tiny.params(config, model)
    own = {n: x for n, x in params.items() if n != "backbone"}
    params = {**params, **tiny.shaken(own)}
    return config, model, *model.split(params)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def stepper(config, model, deterministic=False, mesh=None, accumulate=1):
    tx = optimizer.optimizer(config.optim, 10)
    alpha = optimizer.blend_alpha(config.blend, 10)
    step = build_step(
        model,
        tx,
        alpha,
        mesh or one_device(),
        accumulate=accumulate,
        deterministic=deterministic,
    )
    return tx, step


def grads_of(model, trainable, frozen, batch, accumulate):
    run = jax.jit(gradients(model, accumulate, deterministic=True))
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")
    return run(trainable, frozen, batch, ALPHA, keys)


@pytest.mark.parametrize("method", ["hyper_mlp", *soak("full", "lora", TRANSFORMER)])
def test_accumulation_equals_the_large_batch(method):
    _, model, trainable, frozen = ready(method)
    batch = tiny.batch(rows=8)
    weight = np.ones(8, np.float32)
    weight[0] = 2.5  # as an example of a weighted class
    weight[5:] = 0  # micro-batches of unequal weight: a mean of means would be wrong
    batch["weight"] = jnp.asarray(weight)
    loss, total, whole = grads_of(model, trainable, frozen, batch, 1)
    loss4, total4, cut = grads_of(model, trainable, frozen, batch, 4)
    assert total == total4 == 6.5
    np.testing.assert_allclose(loss, loss4, rtol=1e-5)
    chex.assert_trees_all_close(whole, cut, atol=1e-6)


def test_rows_of_weight_0_equal_rows_left_out():
    _, model, trainable, frozen = ready()
    batch = tiny.batch(rows=6)
    few = {n: x[:4] for n, x in batch.items()}
    batch["weight"] = jnp.asarray([1, 1, 1, 1, 0, 0], jnp.float32)
    chex.assert_trees_all_close(
        grads_of(model, trainable, frozen, batch, 1),
        grads_of(model, trainable, frozen, few, 1),
        atol=1e-6,
    )


@pytest.mark.parametrize("method", ["hyper_mlp", *soak("lora_frozen_a", TRANSFORMER)])
def test_frozen_leaves_never_change_and_trained_ones_do(method):
    a = "fixed" if method == "hyper_mlp" else "random"
    config, model, trainable, frozen = ready(method, hyper={"a": a})
    tx, step = stepper(config, model)
    state = init_state(trainable, tx, jax.random.key(0))
    before = jax.tree.map(np.asarray, frozen)
    for i in range(3):
        state, info = step(state, frozen, tiny.batch(seed=i))
    chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, frozen))
    assert np.isfinite(float(info["loss"])) and int(state.step) == 3
    for path, x in trees.flatten(state.params).items():
        if not path.endswith("/k/bias"):  # its gradient is zero in exact arithmetic
            assert np.abs(x - trees.flatten(trainable)[path]).max() > 0, path


PATTERNS = {
    "rank_pattern": {r"layer\.1\..*query": 1, "value": 3},
    "alpha_pattern": {r"layer\.0\..*": 7},
}


@pytest.mark.parametrize(
    ("method", "rslora"),
    [("lora", True), pytest.param("lora_frozen_a", False, marks=pytest.mark.soak)],
)
def test_the_padding_of_lower_ranks_stays_zero(method, rslora):
    config = tiny.settings(
        method, lora=PATTERNS | {"rslora": rslora}, optim={"weight_decay": 0.3}
    )
    model = tiny.model(config)
    trainable, frozen = model.split(tiny.params(config, model))
    tx, step = stepper(config, model)
    state = init_state(trainable, tx, jax.random.key(0))
    start = jax.tree.map(np.asarray, trees.union(trainable, frozen)["lora"])
    for i in range(4):
        state, _ = step(state, frozen, tiny.batch(seed=i))
    lora = jax.tree.map(np.asarray, trees.union(state.params, frozen)["lora"])
    for module, layer, rank in (("q", 0, 2), ("q", 1, 1), ("q", 2, 2), ("v", 1, 3)):
        a, b = lora[module]["a"][layer], lora[module]["b"][layer]
        assert a.shape[1] == b.shape[0] == 3, "one rank for all: the largest"
        assert not a[:, rank:].any() and not b[rank:].any()
        assert (b[:rank] != 0).all() and (a[:, :rank] != 0).all()
        moved = (a != start[module]["a"][layer]).any()
        assert moved == (method == "lora")


@pytest.mark.parametrize("method", ["hyper_mlp", *soak(TRANSFORMER)])
def test_a_network_writes_and_trains_no_more_than_the_rank_of_a_site(method):
    _, model, trainable, frozen = ready(method, lora=PATTERNS)
    params = trees.union(trainable, frozen)
    found = model_lib.conditions(model.parts, params, {})
    ((_, lora),) = model_lib.compact(model.parts, params, found, ALPHA)
    for module, layer, rank in (("q", 0, 2), ("q", 1, 1), ("v", 1, 3)):
        a, b = (np.asarray(lora[module][f][layer]) for f in "ab")
        assert not a[:, rank:].any() and not b[rank:].any()
        assert (a[:, :rank] != 0).all() and (b[:rank] != 0).all()
    scale = [[7 / 2, 4 / 1, 4 / 2], [7 / 3, 4 / 3, 4 / 3]]
    np.testing.assert_allclose([model.parts.scale[m] for m in "qv"], scale)
    adapter = jax.jit(model.adapt)(params, {}, ALPHA)
    for m, own in zip("qv", scale, strict=True):
        wanted = np.asarray(own)[:, None, None] * lora[m]["b"]
        np.testing.assert_allclose(adapter.factors[m]["b"], wanted, atol=1e-6)


def test_one_trace_per_bucket_and_none_more():
    config, model, trainable, frozen = ready()
    traced = []
    apply = model.parts.head.apply

    def counting(params, hidden_BTD, batch, key=None):
        traced.append(hidden_BTD.shape)
        return apply(params, hidden_BTD, batch, key)

    parts = model.parts._replace(head=model.parts.head._replace(apply=counting))
    counted = model_lib.of_parts(parts)
    tx, step = stepper(config, counted)
    whole = replicated(one_device())  # as the loop places it
    state = jax.device_put(init_state(trainable, tx, jax.random.key(0)), whole)
    for tokens in (9, 12, 9, 12, 9):
        state, _ = step(state, frozen, tiny.batch(tokens=tokens))
    assert len(traced) == 2, traced


def test_the_step_is_a_function_of_state_and_batch():
    config, model, trainable, frozen = ready()
    tx, step = stepper(config, model)
    ends = []
    for _ in range(2):
        state = init_state(trainable, tx, jax.random.key(0))
        for i in range(3):
            state, _ = step(state, frozen, tiny.batch(seed=i))
        ends.append(jax.tree.map(np.asarray, state.params))
    chex.assert_trees_all_equal(*ends)


def test_init_state_copies_what_it_takes():
    config, model, trainable, frozen = ready()
    tx, step = stepper(config, model)
    key = jax.random.key(0)
    step(init_state(trainable, tx, key), frozen, tiny.batch())
    jax.random.split(key)  # deleted buffers would raise
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trainable))


# in short: tests/sharding/test_equal.py
@pytest.mark.parametrize("method", soak("hyper_mlp", "lora", TRANSFORMER))
def test_sharded_equals_unsharded(method):
    config, model, trainable, frozen = ready(method)
    batch = tiny.batch(rows=8)
    ends = []
    for mesh in (one_device(), make_mesh(MeshConfig(data=4, fsdp=2))):
        tx, step = stepper(config, model, deterministic=True, mesh=mesh)
        state = init_state(trainable, tx, jax.random.key(0))
        losses = []
        for _ in range(3):
            state, info = step(state, frozen, batch)
            losses.append(float(info["loss"]))
        ends.append(losses)
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_the_loss_falls_on_one_batch():
    config, model, trainable, frozen = ready(optim={"lr": 1e-2, "schedule": "constant"})
    tx, step = stepper(config, model, deterministic=True)
    state = init_state(trainable, tx, jax.random.key(0))
    losses = []
    for _ in range(8):
        state, info = step(state, frozen, tiny.batch())
        losses.append(float(info["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_decay_falls_on_kernels_and_static_factors_only():
    config = OptimConfig(
        lr=1.0, weight_decay=0.5, schedule="constant", warmup=0.0, clip=0
    )
    params = {
        "head": {"out": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}},
        "lora": {"q": {"a": jnp.ones(2), "b": jnp.ones(2)}},
        "cond": {"embedding": jnp.ones(2), "project": {"kernel": jnp.ones(2)}},
        "backbone": {"layers": {"attn_norm": {"scale": jnp.ones(2)}}},
        "hyper": {"out": {"6x6": {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}}},
        "loss": {"log_t": jnp.ones(())},
    }
    params["hyper"]["out"] |= {"a": {"q": jnp.ones(2)}, "b": {"q": jnp.ones(2)}}
    for decay_all in (False, True):
        tx = optimizer.optimizer(
            OptimConfig(**{**vars(config), "decay_all": decay_all}), 10
        )
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zero, tx.init(params), params)
        moved = {p for p, u in trees.flatten(updates).items() if np.any(u != 0)}
        kernels = {"head/out/kernel", "hyper/out/6x6/a/kernel", "lora/q/a", "lora/q/b"}
        kernels |= {"cond/project/kernel", "hyper/out/a/q", "hyper/out/b/q"}
        assert moved == (set(trees.flatten(params)) if decay_all else kernels)


def test_the_head_and_the_trunk_have_their_own_rates():
    own = {"head_lr": 1e-2, "trunk_lr": 1e-4}
    params = {
        "head": {"kernel": jnp.ones(1)},
        "lora": {"a": jnp.ones(1)},
        "hyper": {"trunk": {"fc0": jnp.ones(1)}, "out": {"b": jnp.ones(1)}},
    }
    grads = jax.tree.map(jnp.ones_like, params)
    for rates, head, trunk in ((own, 1e-2, 1e-4), ({}, 1e-3, 1e-3)):
        plain = {"lr": 1e-3, "warmup": 0.0, "weight_decay": 0.0, "clip": 0}
        tx = optimizer.optimizer(OptimConfig(**plain, **rates), 10)
        updates, _ = tx.update(grads, tx.init(params), params)
        got = [float(x[0]) for x in trees.flatten(updates).values()]
        wanted = dict.fromkeys(trees.flatten(params), -1e-3)
        wanted |= {"head/kernel": -head, "hyper/trunk/fc0": -trunk}
        np.testing.assert_allclose(got, list(wanted.values()), rtol=1e-4)


def test_clipping_is_by_the_norm_over_all_trainables():
    config = OptimConfig(lr=1.0, warmup=0.0, weight_decay=0.0, clip=1.0, b1=0.0, b2=0.0)
    tx = optax.chain(optax.clip_by_global_norm(config.clip))
    grads = {"head": {"kernel": jnp.asarray([3.0])}, "lora": {"a": jnp.asarray([4.0])}}
    clipped, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(clipped["head"]["kernel"], 0.6, rtol=1e-6)
    ours = optimizer.optimizer(config, 10)
    state = ours.init(grads)
    _, state = ours.update(grads, state, grads)
    (adam,) = [
        s
        for s in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(s, "mu")
    ]
    np.testing.assert_allclose(adam.mu["lora"]["a"], 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule, wanted",
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447]),
        ("constant", [0, 0.5, 1, 1, 1, 1]),
    ],
)
def test_schedules_by_hand(schedule, wanted):
    config = OptimConfig(lr=2.0, warmup=1 / 3, schedule=schedule)
    rate = optimizer.learning_rate(config, 6)
    got = [float(rate(s)) / 2 for s in range(6)]
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_annealing_by_hand():
    linear = optimizer.blend_alpha(BlendConfig(a="add", alpha=0.9, anneal="linear"), 4)
    np.testing.assert_allclose(
        [linear(s) for s in range(4)], [0.9, 0.6, 0.3, 0.0], atol=1e-6
    )
    reference = BlendConfig(a="add", alpha=0.8, anneal="reference")
    cut = optimizer.blend_alpha(reference, 4, accumulate=2)
    np.testing.assert_allclose(
        [cut(s) for s in range(4)], [0.8, 0.7, 0.6, 0.5], atol=1e-6
    )
    none = optimizer.blend_alpha(BlendConfig(a="add", alpha=0.3), 4)
    assert float(none(3)) == pytest.approx(0.3)
