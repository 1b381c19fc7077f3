import queue
import threading

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import batches as batches_lib
from hypelora_jax.data import buckets, sources
from hypelora_jax.data.iterator import train_iterator
from hypelora_jax.data.tokens import tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.families.roberta import ROBERTA

EDGES = (16, 24, 40)
BATCH = 8


def make(num_examples=100, pad_id=1):
    config = DataConfig(source="synthetic", num_examples=num_examples)
    table = sources.load(config, seed=0).splits["train"]
    return batches_lib.dataset(table, tokenizer(None, ROBERTA.tokens, pad_id), 40)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == right[name].dtype


def test_collate_pads_with_the_models_id():
    data = make(pad_id=7)
    rows = np.asarray([3, 0, 5])
    batch = batches_lib.collate(data, rows, 40, 3)
    for i, row in enumerate(rows):
        tokens = data.encoded.ids[row]
        n = len(tokens)
        np.testing.assert_array_equal(batch["ids"][i, :n], tokens)
        assert (batch["ids"][i, n:] == 7).all()
        assert batch["mask"][i].tolist() == [True] * n + [False] * (40 - n)
    np.testing.assert_array_equal(batch["label"], data.label[rows])
    kinds = {name: x.dtype.name for name, x in batch.items()}
    assert kinds == {
        "ids": "int32",
        "mask": "bool",
        "types": "int32",
        "label": "int32",
        "weight": "float32",
        "index": "int64",
    }


def test_cut_texts_of_all_splits_are_one_warning(caplog):
    def warnings():
        return [r for r in caplog.records if r.levelname == "WARNING"]

    batches_lib.warn_of_cuts([make(), make()], 40)
    assert not warnings()  # nothing was cut
    config = DataConfig(source="synthetic", num_examples=100)
    splits = sources.load(config, seed=0).splits
    words = tokenizer(None, ROBERTA.tokens, 1)
    short = [batches_lib.dataset(t, words, 5) for t in splits.values()]
    n = sum(len(data.ids) for data in short)
    batches_lib.warn_of_cuts(short, 5)
    assert len(warnings()) == 1
    assert f"cut {n} of {n} texts to 5 tokens (data.max_length)" in caplog.text


def test_padding_rows_repeat_the_first_with_weight_0():
    batch = batches_lib.collate(make(), np.asarray([4, 2]), 40, 5)
    np.testing.assert_array_equal(batch["weight"], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(batch["index"], [4, 2, -1, -1, -1])
    for name in ("ids", "mask", "types", "label"):
        for i in (2, 3, 4):
            np.testing.assert_array_equal(batch[name][i], batch[name][0])


def test_soft_labels():
    data = make()
    batch = batches_lib.collate(data, np.asarray([4, 2]), 40, 3, soft=True)
    np.testing.assert_array_equal(batch["label"], data.soft[[4, 2, 4]])
    with pytest.raises(UserError, match="this source has none"):
        batches_lib.collate(data._replace(soft=None), np.asarray([4]), 40, 3, soft=True)
    with pytest.raises(UserError, match="or config.loss.labels=hard"):  # at once
        train_iterator(data._replace(soft=None), EDGES, 3, 0, 1, soft=True)


def test_each_example_once_an_epoch():
    data = make()
    batches = list(train_iterator(data, EDGES, BATCH, 0, num_epochs=3))
    steps = buckets.steps_per_epoch(data.lengths, EDGES, BATCH)
    assert len(batches) == 3 * steps
    orders = []
    for epoch in range(3):
        part = batches[epoch * steps : (epoch + 1) * steps]
        index = np.concatenate([b["index"] for b in part])
        orders.append(index[index >= 0].tolist())
        assert sorted(orders[-1]) == list(range(len(data.label)))
    assert orders[0] != orders[1] != orders[2]


def test_batch_is_decided_by_seed_and_number():
    data = make()
    one, two, other = (
        list(train_iterator(data, EDGES, BATCH, seed, 2)) for seed in (5, 5, 6)
    )
    for left, right in zip(one, two, strict=True):
        assert_same(left, right)
    assert any(
        (a["index"] != b["index"]).any() for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("after", [0, 1, 17])
def test_state_resumes_identically(after):
    data = make()
    whole = list(train_iterator(data, EDGES, BATCH, 0, 2))
    first = train_iterator(data, EDGES, BATCH, 0, 2)
    for _ in range(after):
        next(first)
    second = train_iterator(data, EDGES, BATCH, 0, 2)
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == len(whole) - after
    for left, right in zip(rest, whole[after:], strict=True):
        assert_same(left, right)


def test_iterator_goes_through_orbax(tmp_path):
    data = make()
    whole = list(train_iterator(data, EDGES, BATCH, 0, 1))
    iterator = train_iterator(data, EDGES, BATCH, 0, 1)
    for _ in range(5):
        next(iterator)
    ocp.save_checkpointables(tmp_path / "ckpt", {"data": iterator})
    fresh = train_iterator(data, EDGES, BATCH, 0, 1)
    ocp.load_checkpointables(tmp_path / "ckpt", {"data": fresh})
    assert_same(next(fresh), whole[5])


def test_processes_share_each_batch():
    data = make()
    whole = list(train_iterator(data, EDGES, BATCH, 0, 1))
    shares = np.split(np.arange(BATCH), 2)
    parts = [list(train_iterator(data, EDGES, BATCH, 0, 1, own=own)) for own in shares]
    for batch, left, right in zip(whole, *parts, strict=True):
        for one in (left, right):
            np.testing.assert_array_equal(one.pop("index"), batch["index"])
        batch.pop("index")
        assert_same({k: np.concatenate([left[k], right[k]]) for k in batch}, batch)
        assert len(left["ids"]) == BATCH // 2
    evals = [
        list(batches_lib.eval_batches(data, EDGES, BATCH, own=own)) for own in shares
    ]
    assert sum(b["weight"].sum() for part in evals for b in part) == 100


def test_an_extra_bucket_stays_within_the_models_positions():
    data = make()._replace(max_length=None)
    longest = int(data.lengths.max())
    edges = (longest - 1,)
    free, capped = (
        max(b["ids"].shape[1] for b in batches_lib.eval_batches(d, edges, BATCH))
        for d in (data, data._replace(max_length=longest))
    )
    assert free == -(-longest // 8) * 8 and capped == longest


@pytest.mark.parametrize("edges", [EDGES, (16,)])
def test_evaluation_covers_each_example_once(edges):
    data = make(90)
    batches = list(batches_lib.eval_batches(data, edges, BATCH))
    index = np.concatenate([b["index"] for b in batches])
    assert sorted(index[index >= 0]) == list(range(90))
    assert sum(b["weight"].sum() for b in batches) == 90
    for batch in batches:
        real = batch["index"] >= 0
        np.testing.assert_array_equal(
            batch["mask"].sum(1)[real], data.lengths[batch["index"][real]]
        )


def test_bucketed_and_padded_batches_hold_the_same_tokens():
    data = make(50)
    found = {}
    for edges in (EDGES, (40,)):
        for batch in batches_lib.eval_batches(data, edges, BATCH):
            for row, ids, mask in zip(
                batch["index"], batch["ids"], batch["mask"], strict=True
            ):
                if row >= 0:
                    found.setdefault(int(row), []).append(ids[mask].tolist())
    assert len(found) == 50 and all(a == b for a, b in found.values())


def test_describe():
    data = make()
    line = batches_lib.describe(data, EDGES, BATCH)
    assert line.startswith("100 examples of ") and "buckets 16: " in line
    assert "steps an epoch" in line and "% padding" in line


def test_batches_are_made_ahead_in_another_thread():
    made = queue.SimpleQueue()

    def place(batch):
        made.put(threading.get_ident())
        return batch["index"]

    batches = train_iterator(make(), EDGES, BATCH, 0, 3, place=place)
    next(batches)
    # the loop has one batch, and others are made while it computes
    threads = {made.get(timeout=60) for _ in range(4)}
    assert threads.isdisjoint({threading.get_ident()})
    # what is made ahead does not count as seen
    whole = list(train_iterator(make(), EDGES, BATCH, 0, 3))
    again = train_iterator(make(), EDGES, BATCH, 0, 3)
    again.set_state(batches.get_state())
    assert_same(next(again), whole[1])
