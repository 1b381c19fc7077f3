"""Reconstruction: the loss of a step is that of dense deltas, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax import model as model_lib
from hypelora_jax import objectives, trees
from hypelora_jax.adapters import canonical
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.keys import named_keys
from hypelora_jax.objectives.reconstruction import LOSSES
from hypelora_jax.train.step import gradients
from hypelora_jax.types import Adapter

TASKS, WIDTH = 5, 6
TASK = unnamed(tiny.CLASSES)._replace(tasks=TASKS, condition=WIDTH)


def built(**loss):
    loss = {"objective": "reconstruction", **loss}
    config = tiny.settings(condition={"source": "text"}, loss=loss)
    return model_lib.build(config, tiny.CONFIG, TASK)


def doubled(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def targets_of(model, rank=2, seed=3):
    """Random canonical factors of K tasks, and their deviations."""
    rng, out = np.random.default_rng(seed), {}
    for m, site in model.parts.hyper_sites.items():
        lead = (tiny.CONFIG.layers, TASKS)
        a = rng.normal(size=(*lead, site.d_in, rank))
        b = rng.normal(size=(*lead, rank, site.d_out))
        out[m] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    factors = canonical.canonical(out)
    return {"factors": factors, "deviation": canonical.standard(factors).deviation}


def batch(tasks, rows):
    task_B = np.repeat(tasks, rows).astype(np.int32)
    rng = np.random.default_rng(1)
    own = {"condition": jnp.asarray(rng.normal(size=(len(tasks), WIDTH)))}
    weight_B = np.linspace(0.5, 2, len(task_B))
    rows = tiny.batch(len(task_B)) | {"task": jnp.asarray(task_B)}
    return rows | own | {"weight": jnp.asarray(weight_B)}


def dense_loss(model, params, given, rows):
    """The weighted mean over rows of the mean relative error of dense deltas."""
    factors, _ = model.adapt(params, rows, 0.0, None)
    tasks = np.asarray(rows["task"])
    index_B = np.repeat(
        np.arange(len(rows["condition"])), len(tasks) // len(rows["condition"])
    )
    each = []
    for m, f in factors.items():
        made = jnp.einsum("luir,luro->luio", f["a"], f["b"])[:, index_B]
        wanted = given["factors"][m]
        wanted = jnp.einsum("luir,luro->luio", wanted["a"], wanted["b"])[:, tasks]
        error = jnp.sum((made - wanted) ** 2, axis=(-2, -1))
        each.append(error / jnp.sum(wanted**2, axis=(-2, -1)))
    loss_B = jnp.mean(jnp.concatenate(each), axis=0)
    return jnp.sum(loss_B * rows["weight"]) / jnp.sum(rows["weight"])


@pytest.mark.parametrize(
    ("tasks", "accumulate"),
    [
        ([3, 0, 4], 2),  # a group in two micro-batches
        pytest.param([3, 0, 4, 1], 1, marks=pytest.mark.soak),
        # micro-batches of whole groups
        pytest.param([3, 0, 4, 1], 2, marks=pytest.mark.soak),
    ],
)
def test_a_step_has_the_loss_and_the_gradient_of_dense_deltas(tasks, accumulate):
    with jax.enable_x64(True):
        model = built()
        params = doubled(tiny.shaken(model.init(jax.random.key(0))))
        trainable, frozen = model.split(params)
        given, rows = targets_of(model), batch(tasks, 4)
        grads = jax.jit(gradients(model, accumulate, deterministic=True))
        keys = named_keys(jax.random.key(1), 0, "adapt", "rows")
        frozen = {**frozen, "targets": given}
        loss, weight, found = grads(trainable, frozen, rows, jnp.zeros(()), keys)
        rest = {n: x for n, x in frozen.items() if n != "targets"}

        def dense(own):
            return dense_loss(model, trees.union(own, rest), given, rows)

        wanted, gradient = jax.value_and_grad(dense)(trainable)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(weight, rows["weight"].sum(), rtol=1e-12)
        np.testing.assert_allclose(loss, wanted, rtol=1e-10)
        flat, own = trees.flatten(found), trees.flatten(gradient)
        assert flat.keys() == own.keys() and len(flat) > 4
        for path, x in own.items():
            np.testing.assert_allclose(flat[path], x, atol=1e-10, err_msg=path)


def test_factors_are_compared_in_units_of_their_deviation():
    with jax.enable_x64(True):
        model = built(name="factors")
        given = targets_of(model)
        made = jax.tree.map(lambda x: x[:, [2, 0]], given["factors"])
        rows = batch([2, 0], 2)
        params = {"targets": given}
        sums = model.objective.sums
        assert float(sums(model, params, Adapter(made), rows, None)[0]) < 1e-20
        away = jax.tree.map(lambda x, d: x + 2 * d[:, None], made, given["deviation"])
        loss, weight = sums(model, params, Adapter(away), rows, None)
        assert float(loss / weight) == pytest.approx(4, rel=1e-12)
        other = {"targets": targets_of(model, rank=3)}
        with pytest.raises(UserError, match="lora.rank is 2 and an adapter has rank 3"):
            sums(model, other, Adapter(made), rows, None)


def test_the_head_stays_as_it_is():
    model = built()
    trainable, frozen = model.split(jax.eval_shape(model.init, jax.random.key(0)))
    assert "head" in frozen and set(trainable) == {"hyper", "cond"}
    with pytest.raises(UserError, match="learns given adapters, and there are none"):
        model.objective.sums(model, {}, Adapter({}), {}, None)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"smoothing": 0.1}, "sets more than objective=reconstruction and a name"),
        ({"name": "brier"}, "loss.name is 'brier'; expected one of auto, delta"),
    ],
)
def test_a_loss_of_classes_is_refused(loss, words):
    config = LossConfig(objective="reconstruction", **loss)
    with pytest.raises(UserError, match=words):
        objectives.of(TASK, config)
    assert set(LOSSES) == {"delta", "factors"}
