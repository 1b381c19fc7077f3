"""Sharded equals unsharded: on 8 devices, whatever the mesh, the same numbers."""

import functools
import re

import jax
import numpy as np
import pytest
import tiny

from hypelora_jax import assemble, trees
from hypelora_jax.plan import hlo
from hypelora_jax.settings import MeshConfig
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import make_mesh, put_batch
from hypelora_jax.train import optim, setup, validate
from hypelora_jax.train.state import init_state, state_shardings
from hypelora_jax.train.step import build_step

METHODS = ("lora", "hyper_mlp", "hyper_transformer", "full")
MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
ALL_AXES = (2, 2, 2)
SHORT = (ALL_AXES, "hyper_mlp", 2)  # the most at once; in `make soak` all


def case(sizes, method, accumulate=1):
    """A mesh, a method, and micro-batches of a step."""
    name = f"{method}-{'x'.join(map(str, sizes))}" + "-micro" * (accumulate > 1)
    marks = [] if (sizes, method, accumulate) == SHORT else pytest.mark.soak
    return pytest.param(sizes, method, accumulate, marks=marks, id=name)


CASES = [
    *(case(sizes, method) for method in METHODS for sizes in MESHES),
    *(case(ALL_AXES, method, 2) for method in METHODS),
    case((8, 1, 1), "hyper_mlp", 2),
]
OPTIM = {"eps": 1e-6, "clip": 0.0, "schedule": "constant", "warmup": 0.0, "lr": 1e-3}
NO_GRADIENT = re.compile(r".*/k/bias")  # zero in exact arithmetic: noise, normalised


def mesh_of(sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return make_mesh(MeshConfig(*sizes), devices)


def ready(method, sizes, accumulate=1):
    """(step, state, frozen, mesh) of a tiny model; dropout and clipping as in runs."""
    settings = tiny.settings(method, optim=OPTIM)
    model, mesh = tiny.model(settings), mesh_of(sizes)
    params = shaken(tiny.params(settings, model))
    trainable, frozen = assemble.split(settings, params)
    tx = optim.optimizer(settings.optim, 10)
    state = init_state(trainable, tx, jax.random.key(0))
    where = (
        state_shardings(state, tx, mesh, tiny.CONFIG.family),
        rules.shardings(frozen, mesh, tiny.CONFIG.family),
    )
    state, frozen = jax.device_put((state, frozen), where)
    alpha = optim.blend_alpha(settings.blend, 10)
    step = build_step(model, tx, alpha, mesh, accumulate=accumulate, shardings=where)
    return step, state, frozen, mesh


def shaken(params):
    """Noise on every leaf, so that no delta is zero."""
    rng = np.random.default_rng(1)
    leaves, structure = jax.tree.flatten(params)
    noisy = [x + 0.05 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, noisy)


def train(method, sizes, accumulate=1):
    """Losses of 5 steps, gradient of the first, trainables after the last."""
    step, state, frozen, mesh = ready(method, sizes, accumulate)
    losses, gradient = [], None
    for i in range(5):
        batch = tiny.batch(rows=16, seed=i)
        batch["weight"] = np.where(np.arange(16) < 13, 1, 0).astype(np.float32)
        state, info = step(state, frozen, put_batch(batch, mesh))
        losses.append(float(info["loss"]))
        if gradient is None:  # Adam's first moment is (1 - b1) times the gradient
            (adam,) = [s for s in state.opt_state if hasattr(s, "mu")]
            gradient = {p: x / 0.1 for p, x in host(adam.mu).items()}
    return np.asarray(losses), gradient, host(state.params)


def host(tree):
    return {p: np.asarray(x) for p, x in trees.flatten(tree).items()}


@functools.cache
def whole(method, accumulate):
    """What one device gives."""
    return train(method, (1, 1, 1), accumulate)


@pytest.mark.parametrize("sizes, method, accumulate", CASES)
def test_sharded_equals_unsharded(sizes, method, accumulate):
    losses, gradient, params = whole(method, accumulate)
    got_losses, got_gradient, got_params = train(method, sizes, accumulate)
    np.testing.assert_allclose(got_losses, losses, atol=1e-5, rtol=0)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values()))
    for path, g in gradient.items():
        np.testing.assert_allclose(
            got_gradient[path], g, atol=1e-5 * norm, rtol=0, err_msg=path
        )
    for path, x in params.items():
        if not NO_GRADIENT.fullmatch(path):
            np.testing.assert_allclose(
                got_params[path], x, atol=1e-5, rtol=0, err_msg=path
            )


@pytest.mark.soak  # in short: tests/plan/test_plan.py
def test_what_crosses_data_is_the_gradient_of_factors_and_head():
    step, state, frozen, mesh = ready("hyper_mlp", (8, 1, 1))
    batch = put_batch(tiny.batch(rows=16), mesh)
    text = step.lower(state, frozen, batch).compile().as_text()
    moved = hlo.collective_bytes(text)  # a sum in the loop over layers counts for each
    factors = 3 * 2 * 2 * (32 + 32)  # layers, modules, rank, both sides
    wanted = 4 * (factors + trees.count(state.params["head"]))
    assert moved.keys() == {"all-reduce"}
    assert wanted <= moved["all-reduce"] <= 1.1 * wanted + 64, (moved, wanted)
    made = 4 * trees.count(state.params["hyper"])
    assert made > 0.5 * wanted, "else the test could not tell"


@functools.cache
def judged(sizes):
    """On a mesh: parameters, logits and metrics of a split of 45 examples."""
    sections = {
        "model": {"path": "random:tiny"},
        "data": {"source": "synthetic", "num_examples": 64, "max_length": 32},
    }
    settings = tiny.settings("hyper_mlp", **sections)
    corpus = setup.load_corpus(settings)
    bench = setup.workbench(settings, corpus.task, mesh=mesh_of(sizes))
    data = setup.plan(bench, corpus).datasets["validation"]
    data = data._replace(label=data.label[:45], ids=data.ids[:45], soft=None)
    encoded = data.encoded._replace(
        ids=data.encoded.ids[:45], types=data.encoded.types[:45]
    )
    logits = validate.split_logits(
        validate.forward(bench.model, bench.mesh),
        bench.trainable,
        bench.frozen,
        np.zeros((), np.float32),
        data._replace(encoded=encoded),
        (24, 32),
        6,  # 8 devices cannot cut this: evaluation makes it 8
    )
    params = host(trees.union(bench.trainable, bench.frozen))
    return params, logits, validate.judge(corpus.task, logits, data.label)


@pytest.mark.soak  # in short: tests/sharding/test_processes.py
@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: "x".join(map(str, s)))
def test_evaluation_counts_each_example_once(sizes):
    params, logits, metrics = judged((1, 1, 1))
    got_params, got_logits, got_metrics = judged(sizes)
    for path, x in params.items():
        np.testing.assert_allclose(got_params[path], x, atol=1e-6, err_msg=path)
    assert got_logits.shape == (45, 2) and np.isfinite(got_logits).all()
    np.testing.assert_allclose(got_logits, logits, atol=1e-5, rtol=0)
    assert got_metrics["n"] == 45
    for name, value in metrics.items():
        assert got_metrics[name] == pytest.approx(value, abs=1e-6), name
