"""Heads that read entries of a batch: steps, devices, evaluation, bank, run folder."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_zero
import tiny
from sharding.sharded import mesh_of

from hypelora_jax import model as model_lib
from hypelora_jax import trees
from hypelora_jax.api import models
from hypelora_jax.config.settings import UncertaintyConfig
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import averaging, evaluation
from hypelora_jax.exchange import exports
from hypelora_jax.families.encoder.shardings import SHARDINGS as ENCODER
from hypelora_jax.keys import named_keys
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import put_batch
from hypelora_jax.train import optimizer, scoring
from hypelora_jax.train.state import init_state, state_shardings
from hypelora_jax.train.step import build_step, gradients
from hypelora_jax.types import Adapter

TASKS, WIDTH, ROWS, ALPHA = 3, 6, 8, jnp.zeros(())
TASK = unnamed(tiny.CLASSES)._replace(tasks=TASKS, label_width=WIDTH)
KINDS = ("per_task", "label_text")
EACH = (*KINDS, pytest.param("separate", marks=pytest.mark.soak))


def ready(kind, method="lora"):
    optim = {"warmup": 0.0, "lr": 1e-2}
    config = tiny.settings(method, head={"kind": kind, "width": 8}, optim=optim)
    model = model_lib.build(config, tiny.CONFIG, TASK)
    return config, model, model.init(jax.random.key(0))


def batch(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(TASKS, tiny.CLASSES, WIDTH))
    task = np.arange(rows) % TASKS
    given = {"task": task.astype(np.int32), "labels": e[task].astype(np.float32)}
    return {n: np.asarray(x) for n, x in tiny.batch(rows, seed=seed).items()} | given


def trained(kind, method, sizes, accumulate, steps=6):
    """Losses, and trainable parameters before and after, on a mesh."""
    config, model, params = ready(kind, method)
    mesh, tx = mesh_of(sizes), optimizer.optimizer(config.optim, 10)
    trainable, frozen = model.split(params)
    state = init_state(trainable, tx, jax.random.key(0))
    where = (
        state_shardings(state, tx, mesh, ENCODER),
        rules.shardings(frozen, mesh, ENCODER),
    )
    state, frozen = jax.device_put((state, frozen), where)
    alpha = optimizer.blend_alpha(config.blend, 10)
    more = {"accumulate": accumulate, "deterministic": True, "shardings": where}
    step = build_step(model, tx, alpha, mesh, **more)
    losses = []
    for _ in range(steps):
        state, info = step(state, frozen, put_batch(batch(), mesh))
        losses.append(float(info["loss"]))
    return losses, trees.flatten(trainable), trees.flatten(jax.device_get(state.params))


@pytest.mark.parametrize("kind", EACH)
def test_the_head_trains_and_devices_and_micro_batches_change_nothing(kind):
    losses, before, after = trained(kind, "hyper_mlp", (1, 1, 1), 1)
    assert losses[-1] < losses[0] - 0.1
    of_head = [path for path in before if path.startswith("head/")]
    assert len(of_head) >= 4
    assert all((after[path] != before[path]).any() for path in of_head)
    shared, *_ = trained(kind, "hyper_mlp", (2, 2, 2), 2)
    np.testing.assert_allclose(shared, losses, rtol=1e-4)


@pytest.mark.parametrize("kind", EACH)
def test_accumulation_and_packed_entries_give_the_same_gradient(kind):
    _, model, params = ready(kind)
    trainable, frozen = model.split(tiny.shaken(params))
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")

    def found(batch, accumulate, mesh=None):
        run = jax.jit(gradients(model, accumulate, deterministic=True, mesh=mesh))
        return run(trainable, frozen, batch, ALPHA, keys)

    rows = batch()
    whole = found(rows, 1)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(whole[2]["head"]))
    chex.assert_trees_all_close(found(rows, 2), whole, atol=1e-6)
    mesh = mesh_of((4, 1, 1))
    chex.assert_trees_all_close(found(put_batch(rows, mesh), 2, mesh), whole, atol=1e-6)
    # two rows of two examples, each in the order of its own tokens, and one of padding
    length = rows["ids"].shape[1]
    packed = {n: x[:4].reshape(2, 2, *x.shape[1:]) for n, x in rows.items()}
    for name in ("ids", "mask", "types"):
        packed[name] = packed[name].reshape(2, 2 * length)
    segment = np.repeat(np.tile([1, 2], (2, 1)), length, axis=1)
    packed["segment"] = np.where(packed["mask"], segment, 0).astype(np.int32)
    packed["first"] = np.tile(np.asarray([0, length], np.int32), (2, 1))
    four = {n: x[:4] for n, x in rows.items()}
    chex.assert_trees_all_close(found(packed, 1), found(four, 1), atol=2e-5)


@pytest.mark.parametrize("kind", EACH)
def test_evaluation_gives_the_head_its_entries(kind):
    _, model, params = ready(kind)
    params = tiny.shaken(params)
    mesh, rows = mesh_of((2, 1, 1)), batch()
    run = scoring.forward(model, mesh)
    assert run.rows[3:] == model.parts.head.reads != ()
    own = {"index": np.arange(ROWS)}
    got = scoring.logits(run, params, {}, ALPHA, [rows | own], ROWS)
    wanted = tiny.predict(model, params, {n: jnp.asarray(x) for n, x in rows.items()})
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_rows_of_a_bank_have_their_own_heads_and_entries(kind):
    _, model, params = ready(kind)
    mesh, rows = mesh_of((1, 1, 1)), batch()
    both = [tiny.shaken(params, seed=k, by=0.1) for k in range(2)]
    both = [{**one, "backbone": params["backbone"]} for one in both]
    made = [model.adapt(one, {}, ALPHA) for one in both]
    lora = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *(m.factors for m in made))
    head = jax.tree.map(lambda *x: jnp.stack(x), *(one["head"] for one in both))
    stack = {"lora": lora, "head": head, "backbone": params["backbone"]}
    index = np.arange(ROWS) % 2
    given = {"row": index.astype(np.int32), "index": np.arange(ROWS)}
    run = scoring.forward_of_rows(model, mesh)
    got = scoring.logits(run, stack, {}, ALPHA, [rows | given], ROWS)
    rows = {n: jnp.asarray(x) for n, x in rows.items()}
    for k, (one, own) in enumerate(zip(both, made, strict=True)):
        wanted = model.classify(one, Adapter(own.factors), rows)
        np.testing.assert_allclose(got[index == k], wanted[index == k], atol=1e-5)


def test_a_batch_without_the_entries_of_its_head_is_one_line():
    for kind, what in zip(KINDS, ("int32", "float32"), strict=True):
        _, model, params = ready(kind)
        step = models.train_step(model, optimizer.optimizer(tiny.settings().optim, 1))
        state, frozen = step.init(params)
        name = model.parts.head.reads[0]
        rows = {n: x for n, x in batch().items() if n != name}
        with pytest.raises(UserError, match=f"expected '{name}' as well: add .*{what}"):
            step(state, frozen, rows)


@pytest.mark.parametrize("kind", EACH)
def test_a_run_folder_knows_the_tasks_of_its_head(kind, tmp_path, monkeypatch):
    task = step_zero.TASKS["three"]._replace(tasks=TASKS, label_width=WIDTH)
    monkeypatch.setitem(step_zero.TASKS, "set", task)
    config = step_zero.settings(head={"kind": kind, "width": 8})
    made = step_zero.session(config, "set")
    path = step_zero.save(tmp_path / "run", made)
    run = evaluation.open_fitted(str(path))
    assert run.session.task == task
    rows = {n: batch()[n] for n in run.forward.rows}
    found = []
    for forward, own in ((made.forward, made), (run.forward, run)):
        params = trees.union(own.trainable, own.frozen)
        adapter = forward.adapt(params, ALPHA, {})
        found.append(np.asarray(forward.classify(params, adapter, rows)))
    np.testing.assert_array_equal(*found)
    with pytest.raises(
        UserError, match=f"head.kind is {kind}, which transformers' rob"
    ):
        exports.export(str(path), str(tmp_path / "out"))
    laplace = UncertaintyConfig("laplace")
    session = averaging.with_kind(run.session, laplace)
    label = np.zeros(4, np.int32)
    with pytest.raises(UserError, match=f"but head.kind={kind} has none; use"):
        averaging.check(session, label)
