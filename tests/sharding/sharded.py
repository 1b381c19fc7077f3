"""Steps of a tiny model on meshes of the test's 8 devices, and how two runs compare."""

import dataclasses
import functools
import re

import jax
import numpy as np
import sources
import tiny

from hypelora_jax import trees
from hypelora_jax.config.settings import MeshConfig, Settings
from hypelora_jax.families.encoder.shardings import SHARDINGS as ENCODER
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import make_mesh, put_batch
from hypelora_jax.train import ensembles, optimizer
from hypelora_jax.train.state import state_shardings
from hypelora_jax.train.step import build_step

OPTIM = {"eps": 1e-6, "clip": 0.0, "schedule": "constant", "warmup": 0.0, "lr": 1e-3}
NO_GRADIENT = re.compile(r".*/k/bias")  # zero in exact arithmetic: noise, normalised
ROWS = 16


def mesh_of(sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return make_mesh(MeshConfig(*sizes), devices)


def settings(method: str, kind: str = "none", **sections) -> Settings:
    """Settings of a method under a kind of uncertainty, of 2 members, if any."""
    sections["optim"] = OPTIM | sections.get("optim", {})
    made = tiny.settings(method, **sections)
    uncertainty = dataclasses.replace(made.uncertainty, kind=kind, samples=2)
    return dataclasses.replace(made, uncertainty=uncertainty)


def shaken(params, seed=1):
    """Noise on every leaf, so that no delta is zero."""
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(params)
    noisy = [x + 0.05 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, noisy)


def ready(config: Settings, sizes):
    """(step, state, frozen, mesh): dropout and shardings as in runs."""
    model, mesh = sources.model(config), mesh_of(sizes)
    params = tiny.params(config, model)
    seeds = range(config.uncertainty.seeds)
    parts = [model.split(shaken(params, 1 + k)) for k in seeds]
    trainable, frozen = parts[0] if len(parts) == 1 else ensembles.stack(parts)
    tx = optimizer.optimizer(config.optim, 10)
    state = ensembles.start(trainable, tx, [jax.random.key(k) for k in seeds])
    where = (
        state_shardings(state, tx, mesh, ENCODER),
        rules.shardings(frozen, mesh, ENCODER),
    )
    state, frozen = jax.device_put((state, frozen), where)
    step = build_step(
        model,
        tx,
        optimizer.blend_alpha(config.blend, 10),
        mesh,
        accumulate=config.optim.accumulate,
        skip_nonfinite=config.optim.skip_nonfinite > 0,
        conditions=config.uncertainty.conditions,
        seeds=len(seeds),
        shardings=where,
    )
    return step, state, frozen, mesh


def batch(i: int, bad: bool = False, tokens: int = 9) -> dict:
    """Batch of step i, of which the last rows are padding; a bad one has no loss."""
    made = tiny.batch(rows=ROWS, tokens=tokens, seed=i)
    made["weight"] = np.where(np.arange(ROWS) < 13, 1, 0).astype(np.float32)
    if bad:
        made["weight"][5] = np.inf
    return made


def conditions(source: str, count: int, i: int, grouped: bool = False) -> dict:
    """The entries of a batch of step i with so many conditions.

    Rows that share them are in no order, unless they are groups in order; each of as
    many conditions as there are rows has its own.
    """
    rng = np.random.default_rng(i)
    out = sources.entries(source, count, seed=i)
    if 1 < count < ROWS and not grouped:
        out["row"] = rng.permutation(np.arange(ROWS) % count).astype(np.int32)
    return out


def train(
    config: Settings,
    sizes,
    bad: int | None = None,
    count: int = 0,
    grouped: bool = False,
):
    """Losses of 5 steps, gradient of the first, trainables after the last.

    The batch of step `bad`, if any, gives a loss that is not finite; `count` is the
    number of conditions of a batch, 0 for a config that reads none.
    """
    source = config.condition.source
    step, state, frozen, mesh = ready(config, sizes)
    losses, gradient = [], None
    for i in range(5):
        before = state.params
        rows = batch(i, i == bad)
        rows |= conditions(source, count, i, grouped) if count else {}
        state, info = step(state, frozen, put_batch(rows, mesh))
        assert all(x.is_deleted() for x in jax.tree.leaves(before)), "donated"
        assert bool(info["finite"]) is (i != bad)
        losses.append(float(info["loss"]))
        if gradient is None:  # Adam's first moment is (1 - b1) times the gradient
            (adam,) = [s for s in state.opt_state if hasattr(s, "mu")]
            gradient = {p: x / 0.1 for p, x in host(adam.mu).items()}
    return np.asarray(losses), gradient, host(state.params)


@functools.cache
def whole(
    config: Settings, bad: int | None = None, count: int = 0, grouped: bool = False
):
    """What one device gives."""
    return train(config, (1, 1, 1), bad, count, grouped)


def host(tree):
    return {p: np.asarray(x) for p, x in trees.flatten(tree).items()}


def same(got, wanted):
    """Two results of `train`, within the bars of float32."""
    (losses, gradient, params), (got_losses, got_gradient, got_params) = wanted, got
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
