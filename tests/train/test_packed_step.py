"""Packing changes no loss and no gradient; what it does not go with is refused."""

import dataclasses
import json
import signal
import types

import jax
import numpy as np
import pytest
import tiny

from hypelora_jax import cli, trees
from hypelora_jax import model as model_lib
from hypelora_jax.commands.shared import names
from hypelora_jax.config.settings import MeshConfig, from_dict
from hypelora_jax.data import buckets
from hypelora_jax.data.batches import Dataset, collate
from hypelora_jax.data.layouts import packing
from hypelora_jax.data.layouts.packing import Packing
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.data.tokens import Encoded
from hypelora_jax.errors import UserError
from hypelora_jax.sharding.mesh import make_mesh, put_batch
from hypelora_jax.train import loop
from hypelora_jax.train import session as session_lib
from hypelora_jax.train.step import gradients
from hypelora_jax.train.training import Training

# BERT's positions and types, and RoBERTa's; lengths up to all of BERT's positions
BERT = dataclasses.replace(
    tiny.CONFIG, family="bert", pad_id=0, max_positions=10, type_vocab=2
)
FAMILIES = {"bert": BERT, "roberta": tiny.CONFIG}
SIZES = (9, 3, 10, 4, 4, 6, 3)
ROWS = [np.array([2, 1]), np.array([0]), np.array([3, 6, 4]), np.array([5])]


def examples(config):
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, config.vocab, n).astype(np.int32) for n in SIZES]
    # a token that looks like padding has RoBERTa's position of padding
    ids[3][2] = config.pad_id
    types = [(np.arange(n) > n // 2).astype(np.int32) for n in SIZES]
    label, index = np.arange(7, dtype=np.int32) % tiny.CLASSES, np.arange(7)
    return Dataset(Encoded(ids, types, 0), label, None, index, config.pad_id)


def found(model, params, batch, accumulate=1, ways=1):
    """Loss, weight and gradient of the trainable tree, without dropout."""
    trainable, frozen = model.split(params)
    mesh = make_mesh(MeshConfig(ways, 1, 1), jax.devices()[:ways])
    keys = {"rows": jax.random.key(0)}
    run = jax.jit(gradients(model, accumulate, deterministic=True, mesh=mesh))
    return run(trainable, frozen, put_batch(batch, mesh), 0.3, keys)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "full", "hyper_mlp"])
def test_same_loss_and_gradient_as_in_rows_of_their_own(family, method):
    config, data = FAMILIES[family], examples(FAMILIES[family])
    settings = tiny.settings(method)
    model = model_lib.build(settings, config, unnamed(tiny.CLASSES))
    params = tiny.shaken(model.init(jax.random.key(0)), by=0.1)
    weights = np.array([1.0, 2, 1, 0, 1, 3, 1])
    alone = collate(data, np.arange(7), 10, 8, weight_N=weights)
    shape = Packing(4, 15)
    layout = packing.Layout(shape, np.array(SIZES), np.arange(5), 3)
    packed = packing.collate(data, ROWS, layout, weight_N=weights)
    wanted = found(model, params, alone)
    cuts = {"lora": [(1, 1), (1, 4)], "full": [(1, 1)], "hyper_mlp": [(1, 1), (2, 2)]}
    for accumulate, ways in cuts[method]:
        got = found(model, params, packed, accumulate, ways)
        np.testing.assert_allclose(got[:2], wanted[:2], rtol=1e-5)
        theirs = trees.flatten(wanted[2])
        for path, x in trees.flatten(got[2]).items():
            size = max(float(np.abs(theirs[path]).max()), 1e-3)
            np.testing.assert_allclose(x, theirs[path], atol=1e-5 * size, err_msg=path)


def settings(**data):
    sections = {"method": "lora", "model": {"path": "random:tiny"}}
    found = {"source": "synthetic", "num_examples": 200, "max_length": 32} | data
    return from_dict({**sections, "data": found, "optim": {"batch_size": 16}})


def opened(config, record=None):
    corpus = session_lib.load_corpus(config)
    session = session_lib.open_session(config, corpus.task)
    return session_lib.with_data(session, corpus, record)


def test_a_run_that_has_begun_keeps_the_shapes_of_its_batches():
    fresh = opened(settings(packing=True))
    longest = int(fresh.datasets["train"].lengths.max())
    assert fresh.packed is not None and fresh.edges[-1] >= longest
    assert fresh.total_steps == 3 * fresh.steps_per_epoch
    record = {"buckets": [longest - 1, longest + 1], "packing": [16, longest + 3]}
    again = opened(settings(packing=True), record)
    assert again.edges == (longest - 1, longest + 1)
    assert again.packed == Packing(16, longest + 3)
    now = session_lib.data_of(again)
    assert now["buckets"] == record["buckets"] and now["packing"] == record["packing"]
    old = opened(settings(), {"buckets": [longest - 1, longest + 1]})
    assert old.edges == again.edges and "packing" not in session_lib.data_of(old)
    # its data has grown beyond its longest bucket, which the next check refuses
    small = {"buckets": [longest - 1], "packing": [16, longest - 1]}
    grown = opened(settings(packing=True), small)
    assert grown.edges == fresh.edges and grown.packed == fresh.packed


def training(session):
    checkpoints = types.SimpleNamespace(latest_settled=lambda: None)
    return Training(
        session, checkpoints, types.SimpleNamespace(between=lambda run: run)
    )


def test_packed_rows_that_the_devices_do_not_divide_are_refused():
    session = opened(settings(packing=True), {"packing": [12, 64]})
    with pytest.raises(UserError, match="with 12 packed rows .* the 8 devices along"):
        training(session)


def test_the_loop_gets_batches_that_are_placed_ahead():
    session = opened(settings(packing=True))
    data, seen = training(session).data, []
    for _ in range(session.steps_per_epoch):
        rows, batch = next(data)
        assert all(isinstance(x, jax.Array) for x in batch.values())
        assert "index" not in batch and batch["ids"].shape == tuple(session.packed)
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(session.datasets["train"].ids)))


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"condition": {"source": "given", "width": 4}}, "condition.source=given"),
        (
            {"uncertainty": {"kind": "hyper_ensemble"}},
            "uncertainty.kind=hyper_ensemble",
        ),
    ],
)
def test_packing_is_refused_where_examples_have_factors_of_their_own(sections, what):
    config = tiny.settings("hyper_mlp", data={"packing": True}, **sections)
    with pytest.raises(UserError, match=f"data.packing puts .* but .*{what} gives"):
        names.check(config)
    names.check(dataclasses.replace(config, data=tiny.settings().data))


def test_packing_and_padding_to_the_longest_exclude_each_other():
    with pytest.raises(UserError, match="pad_to_max and config.data.packing are both"):
        settings(packing=True, pad_to_max=True)


def test_a_run_goes_on_where_another_version_would_choose_other_shapes(
    tmp_path, monkeypatch
):
    run = tmp_path / "run"
    fields = ("data.num_examples=150", "data.packing=True", "optim.num_epochs=1")
    fields += ("log.every_steps=1",)
    flags = [f"--config.{field}" for field in fields]
    args = ["train", "--config=smoke", f"--workdir={run}", *flags]
    write = loop._write_row

    def stopped(training, log, throughput, step, info):
        write(training, log, throughput, step, info)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_write_row", stopped)
        assert cli.main(args) == 130
    begun = json.loads((run / "config.json").read_text())
    longest = begun["buckets"][-1]
    monkeypatch.setattr(buckets, "edges", lambda *_: (longest + 3,))
    monkeypatch.setattr(packing, "fit", lambda *_: Packing(1, longest + 5))
    assert cli.main(args) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows if row["split"] == "train"]
    assert steps == list(range(1, begun["total_steps"] + 1))
    assert begun["packing"][1] != longest + 5
