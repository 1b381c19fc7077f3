"""Meshes, the placement of batches, and checkpoints that change devices."""

import jax
import numpy as np
import pytest
import tiny

from hypelora_jax import trees
from hypelora_jax.config.settings import MeshConfig, from_dict
from hypelora_jax.data.iterator import train_iterator
from hypelora_jax.errors import UserError
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import mesh as meshes
from hypelora_jax.train import session as session_lib
from hypelora_jax.train.checkpoint.checkpoints import Checkpoints
from hypelora_jax.train.training import abstract_state, extras, first_state


@pytest.mark.parametrize(
    "config, count, wanted",
    [
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((8, 1, 1), 1, (1, 1, 1)),
        ((1, 4, 2), 8, (1, 4, 2)),
        ((1, 4, 2), 4, (1, 2, 2)),
        ((1, -1, 1), 4, (1, 4, 1)),
        ((2, 2, 2), 6, (3, 1, 2)),
        ((2, 3, 1), 5, (5, 1, 1)),
    ],
)
def test_a_run_opens_on_the_devices_there_are(config, count, wanted):
    mesh = meshes.fitting_mesh(MeshConfig(*config), jax.devices()[:count])
    assert tuple(mesh.shape.values()) == wanted


def test_a_mesh_that_does_not_fit_is_refused_for_training():
    with pytest.raises(UserError, match="3 x 1 x 1; expected sizes whose product is"):
        meshes.make_mesh(MeshConfig(3, 1, 1), jax.devices())
    mesh = meshes.make_mesh(MeshConfig(4, 2, 1), jax.devices())
    with pytest.raises(UserError, match="is 12; expected a multiple of the 8 devices"):
        meshes.batch_size_per_device(12, mesh)


def test_the_batch_of_evaluation_grows_to_what_the_mesh_cuts():
    mesh = meshes.make_mesh(MeshConfig(2, 2, 2), jax.devices())
    got = [meshes.fitting_batch_size(n, mesh) for n in (1, 4, 6, 32)]
    assert got == [4, 4, 8, 32]
    np.testing.assert_array_equal(meshes.own_rows(8, mesh), np.arange(8))


def test_put_batch_places_rows_and_drops_the_rest():
    mesh = meshes.make_mesh(MeshConfig(2, 2, 2), jax.devices())
    batch = {n: np.asarray(x) for n, x in tiny.batch(rows=8).items()}
    batch |= {"index": np.arange(8), "condition": np.ones((8, 3, 5), np.float32)}
    batch |= {"task": np.arange(8), "labels": np.ones((8, 2, 5), np.float32)}
    put = meshes.put_batch(batch, mesh)
    absent = {"row", "which", "sentences", *meshes.PACKED_NAMES}
    assert set(put) == {*meshes.BATCH_NAMES} - absent
    for name, x in put.items():
        np.testing.assert_array_equal(x, batch[name])
        assert x.sharding.shard_shape(x.shape)[0] == 2, name


def test_conditions_that_rows_share_are_whole_on_every_device():
    mesh = meshes.make_mesh(MeshConfig(2, 2, 2), jax.devices())
    batch = {n: np.asarray(x) for n, x in tiny.batch(rows=8).items()}
    row = np.arange(8, dtype=np.int32) % 3
    every = {
        "condition": np.ones((3, 5)),
        "which": row[:3],
        "sentences": np.ones((3, 2, 5)),
    }
    groups = {name: x[:2] for name, x in every.items()}
    for more in ({"row": row, **every}, groups):
        put = meshes.put_batch({**batch, **more}, mesh)
        assert all(put[name].sharding.is_fully_replicated for name in every)
        pinned = jax.jit(lambda batch: meshes.pin_batch(batch, mesh))(put)
        for name, x in pinned.items():
            assert x.sharding.is_equivalent_to(put[name].sharding, x.ndim), name


def run_of(sizes):
    """A session and the shapes of its state on a mesh."""
    sections = {
        "model": {"path": "random:tiny"},
        "data": {"source": "synthetic", "num_examples": 64, "max_length": 32},
    }
    settings = tiny.settings("hyper_mlp", hyper={"a": "fixed"}, **sections)
    mesh = meshes.make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    corpus = session_lib.load_corpus(settings)
    session = session_lib.open_session(settings, corpus.task, mesh=mesh)
    session = session._replace(total_steps=10)
    return session, abstract_state(session)


def batches_of(session):
    corpus = session_lib.load_corpus(session.settings)
    data = session_lib.with_data(session, corpus).datasets["train"]
    return train_iterator(data, (32,), 8, seed=0, num_epochs=1)


@pytest.mark.parametrize(
    "source, target",
    [
        ((8, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (1, 8, 1)),
        ((2, 2, 2), (1, 8, 1)),
    ],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.soak  # in short: two processes to one, tests/sharding/test_processes.py
def test_a_checkpoint_of_any_mesh_restores_on_any_other(tmp_path, source, target):
    session, abstract = run_of(source)
    state = first_state(session, abstract)
    own, batches = extras(session.frozen), batches_of(session)
    next(batches)
    with Checkpoints(Run.open(tmp_path)) as saved:
        saved.save(state, own, batches, {"best": 1.0})
    other, wanted = run_of(target)
    with Checkpoints(Run.open(tmp_path)) as saved:
        fresh, like = batches_of(other), extras(other.frozen)
        got = saved.restore(0, wanted, like, ("best",), fresh)
    assert fresh.get_state() == batches.get_state() and got.progress["best"] == 1.0
    np.testing.assert_array_equal(next(fresh)["index"], next(batches)["index"])
    for one, two in ((state.params, got.state.params), (own, got.frozen)):
        two = trees.flatten(two)
        for path, x in trees.flatten(one).items():
            assert np.asarray(x).tobytes() == np.asarray(two[path]).tobytes(), path
    for x, like in zip(
        jax.tree.leaves(got.state), jax.tree.leaves(wanted), strict=True
    ):
        assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
        assert x.dtype == like.dtype


def test_another_mesh_is_the_same_run_and_another_rate_is_not(tmp_path):
    one = from_dict({"mesh": {"data": 8}})
    record = {"config": records.as_dict(one)}
    records.check_same(tmp_path, from_dict({"mesh": {"fsdp": 2}}), record)
    with pytest.raises(UserError, match="optim.lr"):
        records.check_same(tmp_path, from_dict({"optim": {"lr": 0.5}}), record)


def test_paths_of_data_and_model_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    data = {"source": "files", "train": "a.csv", "test": "gs://bucket/b.csv"}
    given = {"data": data, "model": {"path": "base"}, "tasks": {"file": "t.yaml"}}
    got = records.located(from_dict(given | {"condition": {"encoder": "base"}}))
    assert got.data.train == str(tmp_path / "a.csv")
    assert got.data.test == "gs://bucket/b.csv" and got.data.validation == ""
    assert got.model.path == got.condition.encoder == str(tmp_path / "base")
    assert got.tasks.file == str(tmp_path / "t.yaml")
    assert records.located(from_dict({})) == from_dict({}), "minilm is a name"
    assert records.located(got) == got
