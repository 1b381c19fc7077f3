"""Losses in the step: gradients through the hyper-network, weights, cuts, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import process
import pytest
import tiny
from tiny import mean

from hypelora_jax import trees
from hypelora_jax.config.settings import LossConfig, MeshConfig
from hypelora_jax.keys import named_keys
from hypelora_jax.objectives import training_loss
from hypelora_jax.objectives.classification import class_loss
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train import loop, optimizer, training
from hypelora_jax.train import session as session_lib
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step, gradients

EVERY = {
    "cross_entropy": {},
    "learned": {"temperature": "learned"},
    "annealed": {"temperature": 2.0, "anneal": "linear"},
    "smoothing": {"smoothing": 0.1},
    "soft": {"labels": "soft"},
    "focal": {"name": "focal"},
    "flsd53": {"name": "flsd53"},
    "brier": {"name": "brier"},
    "confidence": {"penalty": "confidence"},
    "margin": {"penalty": "margin", "margin": 0.1},
    "mmce": {"penalty": "mmce", "penalty_weight": 1.0},
    "soft_ece": {"penalty": "soft_ece", "penalty_weight": 1.0},
}
OF_BATCH = ("mmce", "soft_ece")
QUICK = ("learned", "focal", "mmce")  # one of each kind; all in make soak


def quick(names):
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.soak) for n in names]


def ready(loss, method="hyper_mlp"):
    config = tiny.settings(method, loss=loss)
    model = tiny.model(config)
    params = tiny.params(config, model)
    own = {n: x for n, x in params.items() if n != "backbone"}
    return config, model, *model.split({**params, **tiny.shaken(own)})


def batch_for(loss, rows=8):
    batch = tiny.batch(rows=rows)
    if loss.get("labels") == "soft":
        share = np.random.default_rng(1).dirichlet(np.ones(tiny.CLASSES), rows)
        batch["label"] = jnp.asarray(share, jnp.float32)
    return batch


def grads_of(loss, built, batch, accumulate=1):
    _, model, trainable, frozen = built
    if loss.get("anneal"):
        frozen = trees.union(frozen, training_loss.at_temperature(jnp.asarray(1.5)))
    run = jax.jit(gradients(model, accumulate, deterministic=True))
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")
    return run(trainable, frozen, batch, jnp.zeros(()), keys)


@pytest.mark.parametrize("name", quick(EVERY))
def test_gradients_reach_the_hyper_network_and_weight_0_is_no_row(name):
    loss = EVERY[name]
    built, batch = ready(loss), batch_for(loss)
    few = {n: x[:6] for n, x in batch.items()}
    batch["weight"] = jnp.asarray([1.0] * 6 + [0.0] * 2)
    padded = grads_of(loss, built, batch)
    chex.assert_trees_all_close(padded, grads_of(loss, built, few), atol=2e-6)
    for path, x in trees.flatten(padded[2]).items():
        assert np.isfinite(x).all(), path
        if not path.endswith("/k/bias"):
            assert np.any(x != 0), path
    assert "loss/log_t" in trees.flatten(padded[2]) or name != "learned"


@pytest.mark.parametrize("name", quick(OF_BATCH))
def test_a_cut_batch_has_the_mean_of_its_parts_penalties(name):
    loss = EVERY[name]
    built, batch = ready(loss), batch_for(loss)
    weight = np.ones(8, np.float32)
    weight[6:] = 0  # parts of weight 4 and 2
    batch["weight"] = jnp.asarray(weight)
    value, total, gradient = grads_of(loss, built, batch, accumulate=2)
    parts = [
        grads_of(loss, built, {n: x[i : i + 4] for n, x in batch.items()})
        for i in (0, 4)
    ]
    assert [float(p[1]) for p in parts] == [4, 2] and float(total) == 6
    wanted = jax.tree.map(lambda a, b: (4 * a + 2 * b) / 6, *[p[2] for p in parts])
    chex.assert_trees_all_close(gradient, wanted, atol=1e-6)
    np.testing.assert_allclose(value, (4 * parts[0][0] + 2 * parts[1][0]) / 6, 1e-5)


@pytest.mark.soak  # in short: the penalty's law in tests/objectives/test_penalties.py
@pytest.mark.parametrize("name", OF_BATCH)
def test_a_penalty_of_the_batch_is_that_of_all_devices(name):
    config, model, trainable, frozen = ready(EVERY[name])
    ends = []
    for mesh in (make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig())):
        tx = optimizer.optimizer(config.optim, 10)
        alpha = optimizer.blend_alpha(config.blend, 10)
        step = build_step(model, tx, alpha, mesh, deterministic=True)
        state = init_state(trainable, tx, jax.random.key(0))
        state, first = step(state, frozen, tiny.batch(rows=8))
        _, second = step(state, frozen, tiny.batch(rows=8))
        ends.append([float(first["loss"]), float(second["loss"])])
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_a_step_has_the_temperature_of_its_number():
    loss = {"temperature": 4.0, "anneal": "linear", "anneal_share": 1.0}
    config, model, trainable, frozen = ready(loss)
    schedule = optimizer.loss_temperature(config.loss, 4)
    tx = optimizer.optimizer(config.optim, 4)
    alpha = optimizer.blend_alpha(config.blend, 4)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step = build_step(model, tx, alpha, mesh, deterministic=True, temperature=schedule)
    state, batch = init_state(trainable, tx, jax.random.key(0)), tiny.batch()
    for t in (4.0, 3.0, 2.0, 1.0):
        params = jax.tree.map(jnp.copy, state.params)
        logits = tiny.predict(model, trees.union(params, frozen), batch)
        wanted = class_loss(LossConfig(temperature=t))
        wanted = mean(wanted.apply({}, logits, batch["label"]), batch["weight"])
        state, info = step(state, frozen, batch)
        np.testing.assert_allclose(info["loss"], wanted, rtol=1e-5)


def test_an_annealed_loss_without_a_temperature_says_so():
    loss = class_loss(LossConfig(anneal="linear"))
    with pytest.raises(ValueError, match="no schedule of the temp"):
        loss.apply({}, jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize(
    ("anneal", "wanted"),
    [("linear", [4, 2.5, 1, 1, 1]), ("geometric", [4, 2, 1, 1, 1])],
)
def test_annealing_by_hand(anneal, wanted):
    config = LossConfig(temperature=4.0, anneal=anneal)
    schedule = optimizer.loss_temperature(config, 5)
    np.testing.assert_allclose([schedule(s) for s in range(5)], wanted, atol=1e-6)
    assert optimizer.loss_temperature(LossConfig(temperature=4.0), 5) is None
    assert float(optimizer.loss_temperature(config, 1)(0)) == 4


def test_the_loop_trains_on_soft_labels_at_the_annealed_temperature(
    tmp_path, monkeypatch
):
    labels, put = [], training.put_batch
    monkeypatch.setattr(
        training, "put_batch", lambda b, mesh: labels.append(b["label"]) or put(b, mesh)
    )
    optimizer = {"batch_size": 32, "num_epochs": 1, "lr": 1e-9}
    config = tiny.settings(
        model={"path": "random:tiny"},
        data={"source": "synthetic", "num_examples": 96, "max_length": 48},
        loss={"labels": "soft", "temperature": 4.0, "anneal": "geometric"},
        optim=optimizer,
        log={"every_steps": 1},
    )
    corpus = session_lib.load_corpus(config)
    session = session_lib.open_session(config, corpus.task)
    session = session_lib.with_data(session, corpus)._replace(
        edges=(48,), steps_per_epoch=3, total_steps=3
    )
    loop.train(session, Run.open(tmp_path), progress=False)
    rows = process.rows(tmp_path)
    rows = [row for row in rows if row["split"] == "train"]
    temperatures = [row["loss_temperature"] for row in rows]
    np.testing.assert_allclose(temperatures, [4, 1, 1], rtol=1e-6)
    assert [x.shape for x in labels] == [(32, 2)] * 3
    np.testing.assert_allclose(np.sum(labels, axis=2), 1, rtol=1e-6)
