"""Packed batches: each example once, hardly any padding, and the same examples."""

import numpy as np
import pytest
from data.test_batches import assert_same, make

from hypelora_jax.data.iterator import train_iterator
from hypelora_jax.data.layouts import packing
from hypelora_jax.data.layouts.packing import Packing
from hypelora_jax.errors import UserError

RNG = np.random.default_rng(0)
SHORT = np.clip(RNG.lognormal(2.3, 0.45, 3000).astype(int), 4, 47)  # as in CoLA
LONG = np.clip(RNG.normal(53, 14, 1000).astype(int), 18, 103)  # as in MRPC
SHAPE = Packing(3, 48)


def epoch(lengths, layout, seed=0, number=0):
    return packing.plan(lengths, layout, seed, number)


@pytest.mark.parametrize("lengths", [SHORT, LONG, np.full(7, 9)])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_each_example_once_and_hardly_any_padding(lengths, batch_size):
    shape = packing.fit(lengths, batch_size)
    layout = packing.layout(lengths, shape)
    for number in range(2):
        batches = epoch(lengths, layout, number=number)
        assert len(batches) == layout.steps
        rows = [row for batch in batches for row in batch]
        assert {len(batch) for batch in batches} == {shape.rows}
        assert sorted(np.concatenate(rows)) == list(range(len(lengths)))
        assert max(lengths[row].sum() for row in rows) <= shape.length
        assert max(len(row) for row in rows) == layout.most
    if len(lengths) > 100:
        assert lengths.sum() > 0.95 * layout.tokens
        assert layout.tokens == layout.steps * shape.rows * shape.length


def test_steps_have_nearly_the_same_number_of_examples():
    shape = packing.fit(SHORT, 32)
    batches = epoch(SHORT, packing.layout(SHORT, shape))
    counts = np.array([sum(len(row) for row in batch) for batch in batches])
    assert abs(counts.mean() - 32) < 4 and (abs(counts - counts.mean()) < 8).all()


def test_rows_are_filled_by_hand():
    layout = packing.layout(np.array([3, 9, 5, 4, 4, 2]), Packing(2, 10))
    # 9 alone, 5 with 4, 4 with 3 and 2; the row of three comes first
    assert layout.first.tolist() == [0, 3, 5, 6] and layout.most == 3
    assert layout.size_N.tolist() == [4, 3, 2, 5, 4, 9] and layout.steps == 2
    with pytest.raises(ValueError, match="has 9 tokens, more than a row, 8"):
        packing.layout(np.array([9]), Packing(1, 8))


@pytest.mark.parametrize("length", [5, 12, 64])
def test_in_inference_rows_have_a_bounded_number_of_examples(length):
    lengths = RNG.integers(2, length + 1, 40)
    layout, rows = packing.placed(lengths, length)
    assert sorted(np.concatenate(rows)) == list(range(40))
    assert max(lengths[row].sum() for row in rows) <= length
    assert max(map(len, rows)) <= layout.most == max(length // 8, 1)
    assert layout.shape == (len(rows), length)
    if length == 64:
        assert len(rows) * 64 < 1.3 * lengths.sum()


def test_order_depends_on_seed_and_epoch_alone():
    layout = packing.layout(SHORT, SHAPE)

    def order(*key):
        batches = epoch(SHORT, layout, *key)
        return np.concatenate([row for batch in batches for row in batch]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1)
    epochs = (epoch(SHORT, layout, 0, i) for i in (0, 1))
    one, two = ({tuple(sorted(row)) for row in sum(e, [])} for e in epochs)
    assert len(one & two) < 0.1 * len(one), "other examples share a row"


def test_a_batch_too_small_for_the_devices_is_refused():
    assert packing.fit(SHORT, 32, 8).rows == 8
    with pytest.raises(UserError, match="is 8, and .* divide 16 rows; .* about 6"):
        packing.fit(SHORT, 8, 16)


@pytest.mark.parametrize("soft", [False, True])
def test_collate_puts_each_example_in_its_place(soft):
    data = make(pad_id=7)
    layout = packing.layout(data.lengths, Packing(3, 64))
    rows = [np.array([4, 9]), np.array([], int), np.array([2])]
    weights = np.arange(100.0)
    batch = packing.collate(data, rows, layout, soft, weight_N=weights)
    labels = data.soft if soft else data.label
    seen = np.zeros((3, 64), bool)
    for b, row in enumerate(rows):
        at = 0
        for p, example in enumerate(row):
            ids = data.encoded.ids[example]
            here = slice(at, at + len(ids))
            assert batch["first"][b, p] == at and batch["index"][b, p] == example
            np.testing.assert_array_equal(batch["ids"][b, here], ids)
            assert (batch["segment"][b, here] == p + 1).all()
            np.testing.assert_array_equal(batch["label"][b, p], labels[example])
            assert batch["weight"][b, p] == weights[example]
            seen[b, here] = True
            at += len(ids)
    np.testing.assert_array_equal(batch["mask"], seen)
    assert (batch["ids"][~seen] == 7).all() and not batch["segment"][~seen].any()
    assert batch["weight"].sum() == weights[[4, 9, 2]].sum()
    assert (batch["index"] >= 0).sum() == 3
    kinds = {name: x.dtype.name for name, x in batch.items()}
    names = dict.fromkeys(("ids", "types", "segment", "first"), "int32")
    names |= {"mask": "bool", "weight": "float32", "index": "int64"}
    assert kinds == names | {"label": "float32" if soft else "int32"}


def iterator(data, **options):
    return train_iterator(data, (), 0, 3, 2, packed=Packing(4, 64), **options)


def test_an_epoch_has_each_example_once_and_resumes():
    data = make()
    whole = list(iterator(data))
    half = whole[: len(whole) // 2]
    index = np.concatenate([batch["index"].ravel() for batch in half])
    assert sorted(index[index >= 0]) == list(range(100))
    assert len({batch["label"].shape for batch in whole}) == 1
    first, second = iterator(data), iterator(data)
    for _ in range(3):
        next(first)
    second.set_state(first.get_state())
    for left, right in zip(second, whole[3:], strict=True):
        assert_same(left, right)


def test_processes_share_each_packed_batch():
    data = make()
    shares = np.split(np.arange(4), 2)
    parts = [list(iterator(data, own=own)) for own in shares]
    for batch, *own in zip(iterator(data), *parts, strict=True):
        for one in own:
            np.testing.assert_array_equal(one.pop("index"), batch["index"])
        batch.pop("index")
        assert_same({n: np.concatenate([x[n] for x in own]) for n in batch}, batch)


def test_describe():
    line = packing.describe(LONG, packing.layout(LONG, packing.fit(LONG, 32)))
    assert line.startswith("1000 examples of ") and "packed into rows of 1" in line
    assert "examples a step; " in line and "steps an epoch, " in line
    assert float(line.split()[-2].rstrip("%")) < 5
