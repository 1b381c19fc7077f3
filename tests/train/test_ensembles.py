"""Ensembles in training: seeds under vmap, rows dealt out to conditions, trees."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import MeshConfig, Settings
from hypelora_jax.keys import named_keys
from hypelora_jax.sharding.mesh import make_mesh, replicated
from hypelora_jax.train import ensembles, optimizer
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step, gradients

K = 3
STEPS = 4
ALPHA = jnp.zeros(())


def ensemble(kind: str, method: str, **sections) -> Settings:
    sections["optim"] = {"lr": 1e-3, "warmup": 0.0} | sections.get("optim", {})
    config = tiny.settings(method, **sections)
    uncertainty = dataclasses.replace(config.uncertainty, kind=kind, samples=K)
    return dataclasses.replace(config, uncertainty=uncertainty)


def seeds_of(config: Settings, model: model_lib.Model) -> list:
    """(trainable, frozen) of K seeds with one backbone, factors not zero."""
    base, parts = tiny.base(), []
    for k in range(K):
        params = model.init(jax.random.key(k), base)
        own = {n: x for n, x in params.items() if n != "backbone"}
        if config.method != "full":
            own = tiny.shaken(own, seed=k + 1)
        parts.append(model.split({**params, **own}))
    return parts


def trainer(config, model, seeds):
    """`train(trainable, frozen, keys)`: state and info after a few steps."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optimizer.optimizer(config.optim, STEPS)
    alpha = optimizer.blend_alpha(config.blend, STEPS)
    step = build_step(model, tx, alpha, mesh, seeds=seeds)
    whole = replicated(mesh)  # as the loop places it: one trace

    def train(trainable, frozen, keys):
        state = jax.device_put(ensembles.start(trainable, tx, keys), whole)
        for i in range(STEPS):
            state, info = step(state, frozen, tiny.batch(seed=i))
        return state, info

    return train


@pytest.mark.parametrize(
    "method, sections",
    [
        pytest.param("lora", {}, marks=pytest.mark.soak),  # the next one has it all
        ("lora_frozen_a", {"optim": {"clip": 0.1}}),  # frozen leaves of each seed's own
        ("hyper_mlp", {"hyper": {"a": "random"}}),
    ],
)
def test_seeds_under_vmap_equal_the_same_seeds_alone(method, sections):
    config = ensemble("deep_ensemble", method, **sections)
    model = tiny.model(config)
    parts = seeds_of(config, model)
    keys = [jax.random.key(10 + k) for k in range(K)]
    trainable, frozen = ensembles.stack(parts)
    assert frozen["backbone"] is parts[0][1]["backbone"], "one frozen backbone"
    state, info = trainer(config, model, K)(trainable, frozen, keys)
    assert state.step.shape == () and int(state.step) == STEPS
    losses, train = [], trainer(config, model, 1)
    for k, (own, own_frozen) in enumerate(parts):
        alone, alone_info = train(own, own_frozen, keys[k : k + 1])
        got, got_frozen = ensembles.member(config, state.params, frozen, k)
        chex.assert_trees_all_close(got, alone.params, atol=1e-5, rtol=0)
        chex.assert_trees_all_equal(got_frozen, own_frozen)
        key_k = jax.random.key_data(state.key[k])
        np.testing.assert_array_equal(key_k, jax.random.key_data(alone.key))
        losses.append(float(alone_info["loss"]))
    assert len(set(losses)) == K
    assert float(info["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_each_row_trains_the_member_it_is_dealt_to():
    config = ensemble("hyper_ensemble", "hyper_mlp")
    model = tiny.model(config)
    params = tiny.params(config, model)
    own = {n: x for n, x in params.items() if n != "backbone"}
    trainable, frozen = model.split({**params, **tiny.shaken(own)})
    assert trainable["cond"]["embedding"].shape[0] == K
    batch = tiny.batch(rows=6)
    batch["weight"] = jnp.asarray([1, 1, 1, 1, 1, 0], jnp.float32)
    dealt = ensembles.dealt(batch, jnp.asarray(2), K)
    np.testing.assert_array_equal(dealt["row"], [2, 0, 1, 2, 0, 1])
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")

    def grads_of(settings, accumulate=1):
        built = tiny.model(settings)
        run = jax.jit(gradients(built, accumulate, deterministic=True))
        return lambda own, batch: run(own, frozen, batch, ALPHA, keys)

    loss, weight, whole = grads_of(config)(trainable, dealt)
    alone = grads_of(tiny.settings("hyper_mlp"))
    sums, embedding = [], []
    for k in range(K):
        one, _ = ensembles.member(config, trainable, frozen, k)
        mine = jnp.asarray(dealt["row"] == k, jnp.float32)
        rows = {**batch, "weight": batch["weight"] * mine}
        loss_k, weight_k, grads_k = alone(one, rows)
        sums.append(jax.tree.map(lambda g, w=weight_k: g * w, (loss_k, grads_k)))
        embedding.append(sums[-1][1].pop("cond")["embedding"])
    total, summed = jax.tree.map(lambda *x: sum(x) / weight, *sums)
    assert float(loss) == pytest.approx(float(total), rel=1e-5)
    shares = whole.pop("cond")["embedding"]
    np.testing.assert_allclose(shares, jnp.stack(embedding) / weight, atol=1e-6)
    assert np.abs(shares).max(axis=(1, 2)).min() > 0, "every member learns"
    chex.assert_trees_all_close(whole, summed, atol=1e-6)
    again = grads_of(config, accumulate=2)(trainable, dealt)[2]
    np.testing.assert_allclose(again.pop("cond")["embedding"], shares, atol=1e-6)
    chex.assert_trees_all_close(again, whole, atol=1e-6)


def test_a_member_of_a_hyper_ensemble_is_an_ordinary_tree():
    config = ensemble("hyper_ensemble", "hyper_mlp")
    model, plain = tiny.model(config), tiny.settings("hyper_mlp")
    params = tiny.params(config, model)
    trainable, frozen = model.split(params)
    wanted = jax.eval_shape(lambda: tiny.params(plain, tiny.model(plain)))
    for k in range(K):
        one, rest = ensembles.member(config, trainable, frozen, k)
        chex.assert_trees_all_equal_shapes_and_dtypes({**rest, **one}, wanted)
        own = one["cond"]["embedding"]
        np.testing.assert_array_equal(own, params["cond"]["embedding"][k])
        assert one["hyper"] is trainable["hyper"], "one shared network"


def test_dealing_moves_on_with_the_steps():
    batch = tiny.batch(rows=K)
    seen = [ensembles.dealt(batch, jnp.asarray(s), K)["row"][0] for s in range(K)]
    assert sorted(map(int, seen)) == list(range(K))


def test_one_seed_starts_as_an_ordinary_run():
    config = tiny.settings("lora")
    model = tiny.model(config)
    trainable, _ = model.split(tiny.params(config, model))
    tx = optimizer.optimizer(config.optim, STEPS)
    key = jax.random.key(3)
    got, wanted = ensembles.start(trainable, tx, [key]), init_state(trainable, tx, key)
    chex.assert_trees_all_equal(got, wanted)
    assert ensembles.member(config, trainable, {}, 0) == (trainable, {})


def test_temperatures_of_seeds_are_their_own():
    config = ensemble("deep_ensemble", "lora", loss={"temperature": "learned"})
    trainable = {"loss": {"log_t": jnp.log(jnp.asarray([1.0, 2.0, 4.0]))}}
    np.testing.assert_allclose(ensembles.temperatures(config, trainable), [1, 2, 4])
    logits_KNY = np.random.default_rng(0).normal(size=(K, 5, 2))
    _, temperature = ensembles.pool(config, trainable, logits_KNY)
    assert temperature == pytest.approx(1.0)
