import itertools

import numpy as np
import pytest

from hypelora_jax.data import buckets

RNG = np.random.default_rng(0)
LENGTHS = np.clip(RNG.lognormal(3.2, 0.6, 5000).astype(int), 3, 128)


@pytest.mark.parametrize("batch_size", [8, 32, 256])
def test_edges_are_few_and_cover_every_row(batch_size):
    edges = buckets.edges(LENGTHS, batch_size, 128)
    assert 2 <= len(edges) <= buckets.MAX_BUCKETS and edges == tuple(sorted(edges))
    padded = np.asarray(edges)[buckets.bucket_of(LENGTHS, edges)]
    assert edges[-1] == 128 and (padded >= LENGTHS).all()
    assert LENGTHS.sum() > 0.7 * padded.sum()


def cost(edges, lengths, batch_size):
    """Tokens of an epoch, and what the buckets cost besides."""
    plan = buckets.plan(lengths, edges, batch_size, seed=None)
    tokens = batch_size * sum(length for _, length in plan)
    return tokens + len(edges) * buckets.MIN_SAVING


@pytest.mark.parametrize("saving", [0.0, 100.0, 800.0, 1e9])
@pytest.mark.parametrize("batch_size", [2, 16, 40])
def test_no_other_edges_cost_less(saving, batch_size, monkeypatch):
    monkeypatch.setattr(buckets, "MIN_SAVING", saving)
    monkeypatch.setattr(buckets, "MAX_BUCKETS", 3)
    lengths = np.random.default_rng(1).binomial(16, 0.4, 150) + 2
    last = -(-lengths.max() // 8) * 8
    others = [
        cost((*inner, last), lengths, batch_size)
        for k in range(3)
        for inner in itertools.combinations(range(1, last), k)
    ]
    found = buckets.edges(lengths, batch_size, 128, epochs=1)
    assert cost(found, lengths, batch_size) == min(others)


def test_edges_of_few_examples_are_one():
    assert buckets.edges(np.asarray([5, 9, 30]), 2, 128) == (32,)


def test_a_bucket_must_save_more_than_its_compilation():
    short, long = np.full(100, 12), np.full(100, 24)
    both = np.concatenate([short, long])
    assert buckets.edges(both, 4, 128) == (24,)
    assert buckets.edges(np.tile(both, 10), 4, 128) == (12, 24)


def test_a_bucket_pays_in_a_longer_run():
    both = np.concatenate([np.full(200, 12), np.full(200, 24)])
    assert buckets.edges(both, 4, 128, epochs=3) == (24,)
    assert buckets.edges(both, 4, 128, epochs=30) == (12, 24)
    assert buckets.edges(np.tile(both, 10), 4, 128, epochs=0.1) == (24,)


def test_edges_of_very_long_examples_are_found_soon(monkeypatch):
    monkeypatch.setattr(buckets, "TRIED", 16)  # multiples of 250
    lengths = np.repeat(np.arange(10, 4000, 7), 40)
    edges = buckets.edges(lengths, 32, 4096)
    assert len(edges) == buckets.MAX_BUCKETS and not np.mod(edges, 250).any()


def test_edges_follow_need_and_max_length():
    assert buckets.edges(LENGTHS, 32, 128, pad_to_max=True) == (128,)
    assert buckets.edges(np.full(10, 98), 2, 100) == (100,)
    assert buckets.edges(np.full(10, 99), 2, 512) == (104,)
    assert buckets.edges(np.asarray([], int), 2, 64) == (64,)


def test_bucket_of():
    lengths = np.asarray([1, 16, 17, 32])
    np.testing.assert_array_equal(buckets.bucket_of(lengths, (16, 32)), [0, 0, 1, 1])
    with pytest.raises(
        ValueError, match="has 33 tokens, more than the last edge of the buckets, 32"
    ):
        buckets.bucket_of(np.asarray([33]), (16, 32))


def test_cover_adds_an_edge_only_when_needed():
    assert buckets.cover((16, 32), np.asarray([32])) == (16, 32)
    assert buckets.cover((16, 32), np.asarray([33])) == (16, 32, 40)


def test_cover_never_goes_beyond_the_length_texts_were_cut_to():
    assert buckets.cover((16, 32), np.asarray([33]), 36) == (16, 32, 36)
    assert buckets.cover((16, 32), np.asarray([33]), 128) == (16, 32, 40)


def test_plan_holds_each_row_once_in_its_bucket():
    edges = buckets.edges(LENGTHS, 32, 128)
    steps = buckets.steps_per_epoch(LENGTHS, edges, 32)
    for epoch in range(3):
        plan = buckets.plan(LENGTHS, edges, 32, seed=0, epoch=epoch)
        assert len(plan) == steps
        rows = np.concatenate([rows for rows, _ in plan])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(LENGTHS)))
        for rows, length in plan:
            assert 1 <= len(rows) <= 32
            assert length == edges[buckets.bucket_of(LENGTHS[rows], edges).max()]
            assert (LENGTHS[rows] <= length).all()


def same(left, right):
    return all(np.array_equal(a, b) for (a, _), (b, _) in zip(left, right, strict=True))


def test_plan_depends_on_seed_and_epoch_alone():
    def plan(seed, epoch):
        return buckets.plan(LENGTHS, (128,), 32, seed, epoch)

    assert same(plan(0, 1), plan(0, 1))
    assert not same(plan(0, 1), plan(0, 2))
    assert not same(plan(0, 1), plan(1, 1))


def test_plan_shuffles_rows_within_a_bucket():
    rows = buckets.plan(LENGTHS, (128,), 5000, seed=0)[0][0]
    assert rows.tolist() != sorted(rows)


def test_plan_shuffles_the_order_of_buckets():
    plan = buckets.plan(LENGTHS, (24, 128), 32, seed=0)
    lengths = [length for _, length in plan]
    assert lengths != sorted(lengths)


def test_plan_without_seed_is_in_order():
    plan = buckets.plan(np.asarray([9, 3, 20, 4]), (8, 16, 32), 1, seed=None)
    assert [(r.tolist(), t) for r, t in plan] == [
        ([1], 8),
        ([3], 8),
        ([0], 16),
        ([2], 32),
    ]
