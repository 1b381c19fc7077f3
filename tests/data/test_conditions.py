"""Vectors of the data: cells and files, and what a batch carries of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hypelora_jax.config.adapter_sections import ConditionConfig
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.data import conditions, sources
from hypelora_jax.data.conditions import Given, Vectors
from hypelora_jax.errors import UserError


@pytest.mark.parametrize(
    ("cell", "shape"), [([1, 2.5], (2,)), ([[1, 2], [3, 4], [5, 6]], (3, 2))]
)
def test_a_cell_is_a_vector_or_one_for_each_slot(cell, shape):
    vectors = Vectors(ConditionConfig(source="given"))
    assert vectors.fault(cell) == ""
    got = vectors.vector(cell)
    assert got.dtype == np.float32 and got.shape == vectors.shape == shape
    np.testing.assert_array_equal(got, cell)
    assert "expected" in vectors.fault([1.0]), "the first one sets the shape"


def test_a_parquet_file_and_json_lines_hold_the_same_vectors(tmp_path):
    rows = [
        {"text": f"text {i}", "label": f"{i % 2}", "v": [i / 8, float(-i)]}
        for i in range(240)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    lines = [str(row).replace("'", '"') for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    found = []
    for name in ("train.parquet", "train.jsonl"):
        config = DataConfig(source="files", train=str(tmp_path / name), condition="v")
        corpus = sources.load(config, 0, ConditionConfig(source="given"))
        assert corpus.task.condition == 2
        train = corpus.splits["train"]
        np.testing.assert_array_equal(train.condition[:, 0], train.ids / 8)
        found.append(train.condition)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize("kinds", [1, 2, 5, 6, 7, 12])
def test_a_batch_gives_each_row_its_vector(n, kinds):
    chance = np.random.default_rng([n, kinds])
    pool = chance.normal(size=(kinds, 3)).astype(np.float32)
    condition = pool[chance.integers(0, kinds, n)]
    held = conditions.distinct(condition)
    assert len(held.vectors) == len(np.unique(condition, axis=0))
    rows = chance.integers(0, n, 6)
    for of in (held, Given(condition)):
        batch = conditions.of_batch(of, rows, 6)
        vectors = batch["condition"]
        if "row" in batch:
            assert batch["row"].dtype == np.int32
            vectors = vectors[batch["row"]]
        wanted = condition[rows]
        np.testing.assert_array_equal(np.broadcast_to(vectors, wanted.shape), wanted)
        taken = conditions.take(of, rows)
        again = taken.vectors if taken.row is None else taken.vectors[taken.row]
        np.testing.assert_array_equal(again, wanted)


def test_the_shape_of_a_batch_depends_on_the_data_alone():
    shared = conditions.distinct(np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 1, 0]])
    for rows in ([0, 5, 0, 5], [0, 1, 2, 3]):
        batch = conditions.of_batch(shared, np.array(rows), 4)
        assert batch["condition"].shape == (3, 3) and batch["row"].shape == (4,)
    own = conditions.distinct(np.eye(6, dtype=np.float32))
    for rows in ([0, 0, 0, 0], [0, 1, 2, 3]):
        batch = conditions.of_batch(own, np.array(rows), 4)
        assert batch.keys() == {"condition"} and batch["condition"].shape == (4, 6)
    one = conditions.distinct(np.ones((5, 2), np.float32))
    assert conditions.of_batch(one, np.array([0, 1]), 4)["condition"].shape == (1, 2)


@pytest.mark.parametrize("shape", [(50, 4), (50, 3, 4)])
def test_moments_are_those_of_all_examples(shape):
    chance = np.random.default_rng(0)
    condition = chance.normal(2, 3, shape).astype(np.float32)
    condition[..., 3] = 7  # never changes
    condition = condition[chance.integers(0, 50, 200)]
    mean, std = conditions.moments(conditions.distinct(condition))
    axes = tuple(range(condition.ndim - 1))
    wide = condition.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(std[:3], wide.std(axes)[:3], rtol=1e-12)
    assert std[3] == 1


def test_the_record_tells_vectors_apart():
    condition = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    about = conditions.about(conditions.distinct(condition))
    assert about["shape"] == [2] and about["distinct"] == 9
    moved = condition.copy()
    moved[4, 1] += 1e-3
    swapped = condition[np.array([1, 0, *range(2, 9)])]
    for other in (moved, swapped):
        again = conditions.about(conditions.distinct(other))
        assert again["sha256"] != about["sha256"]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="none.npz does not exist"):
        Vectors(ConditionConfig(source="given", file=str(tmp_path / "none.npz")))
