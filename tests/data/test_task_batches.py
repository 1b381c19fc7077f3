"""Steps of a set of tasks, and what tasks give to batches."""

from collections import Counter

import numpy as np
import pytest

from hypelora_jax.config.adapter_sections import TasksConfig
from hypelora_jax.data import batches
from hypelora_jax.data.batches import Dataset
from hypelora_jax.data.layouts import task_batches
from hypelora_jax.data.layouts.task_batches import TaskArrays, TaskPlan
from hypelora_jax.data.tokens import Encoded
from hypelora_jax.errors import UserError

NAMES = tuple("abcdef")
SIZES = (40, 60, 80, 100, 120, 200)
EDGES = (8, 16, 32)
ONES = (1.0,) * 6


def lengths_of(task_N: np.ndarray) -> np.ndarray:
    return 3 + (np.arange(len(task_N)) * 7) % 29  # up to 31


def task_rows() -> np.ndarray:
    return np.repeat(np.arange(6), SIZES).astype(np.int32)


def plan_of(weights=ONES, task_N=None, lengths=None, label_N=None, **fields):
    task_N = task_rows() if task_N is None else task_N
    label_N = np.arange(len(task_N)) % 2 if label_N is None else label_N
    lengths = lengths_of(task_N) if lengths is None else lengths
    config = TasksConfig(**{"per_batch": 3, "rows": 4, **fields})
    return TaskPlan(task_N, label_N, lengths, EDGES, weights, config, NAMES)


def dataset_of(arrays: TaskArrays | None) -> Dataset:
    task_N = task_rows()
    n, lengths = len(task_N), lengths_of(task_N)
    ids = [np.full(x, 5 + i % 50, np.int32) for i, x in enumerate(lengths)]
    types = [np.zeros(x, np.int32) for x in lengths]
    label = (np.arange(n) % 2).astype(np.int32)
    about = (label, None, np.arange(n), 1, 32)
    return Dataset(Encoded(ids, types, 0), *about, task=task_N, tasks=arrays)


def test_a_step_has_different_tasks_with_different_rows_of_each_that_fit():
    task_N, lengths, plan = task_rows(), lengths_of(task_rows()), plan_of()
    assert plan.steps == sum(SIZES) // 12 == len(plan.epoch(0, 0))
    for epoch in range(3):
        for group in plan.epoch(7, epoch):
            assert len(set(group.tasks)) == 3 and len(set(group.rows)) == 12
            np.testing.assert_array_equal(task_N[group.rows], group.tasks.repeat(4))
            assert lengths[group.rows].max() <= group.length


def test_steps_depend_on_seed_and_epoch_only():
    one, same, other = plan_of().epoch(3, 2), plan_of().epoch(3, 2), plan_of()
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        assert a.draw == b.draw
    for changed in (other.epoch(3, 1), other.epoch(4, 2)):
        assert any((a.rows != b.rows).any() for a, b in zip(one, changed, strict=True))
    assert len({group.draw for group in one}) == len(one)


def test_balanced_tasks_give_equally_many_rows_of_each_class():
    label_N = (np.arange(len(task_rows())) % 10 == 0).astype(np.int32)  # one in ten
    plan = plan_of(label_N=label_N, balanced=True, steps=50)
    for group in plan.epoch(7, 0):
        assert (label_N[group.rows].reshape(3, 4).sum(axis=1) == 2).all()
        assert len(set(group.rows)) == 12
    drawn = [label_N[g.rows].sum() for g in plan_of(label_N=label_N).epoch(7, 0)]
    assert np.mean(drawn) < 3  # of 12: without it, as the data are


def test_balanced_rows_that_do_not_divide_by_the_classes_go_to_any_of_them():
    label_N = (np.arange(len(task_rows())) % 3).astype(np.int32)
    plan = plan_of(label_N=label_N, balanced=True, steps=200)
    counts = np.stack(
        [np.bincount(label_N[g.rows[:4]], minlength=3) for g in plan.epoch(7, 0)]
    )
    assert {*counts.ravel()} == {1, 2} and (counts.max(axis=0) == 2).all()


def test_a_task_that_cannot_be_balanced_in_a_bucket_is_not_in_it():
    lengths = lengths_of(task_rows())
    label_N = (lengths > 16).astype(np.int32)  # only the longest bucket has both
    plan = plan_of(label_N=label_N, balanced=True, steps=50)
    assert plan.lengths() == [32]
    for group in plan.epoch(0, 0):
        assert (label_N[group.rows].reshape(3, 4).sum(axis=1) == 2).all()


def test_most_rows_are_of_the_longest_examples_that_fit():
    """A batch of length T takes rows of its own bucket, so padding stays low."""
    lengths = lengths_of(task_rows())
    for group in plan_of(steps=200).epoch(0, 0):
        shorter = [e for e in EDGES if e < group.length]
        assert (lengths[group.rows] > max(shorter, default=0)).all()


def test_a_task_with_few_rows_of_a_length_is_filled_up_with_shorter_ones():
    task_N = np.repeat(np.arange(6), 20).astype(np.int32)
    lengths = np.where(np.arange(120) % 20 == 0, 30, 5)  # one long example of each
    groups = plan_of(task_N=task_N, lengths=lengths, steps=400).epoch(0, 0)
    long = [group for group in groups if group.length == 32]
    assert long and plan_of(task_N=task_N, lengths=lengths).lengths() == [8, 32]
    assert all(group.length in (8, 32) for group in groups)
    for group in long:
        assert len(set(group.rows)) == 12
    assert any((lengths[group.rows] == 30).any() for group in long)


@pytest.mark.parametrize(
    ("fields", "weights", "expected"),
    [
        ({"sampling": "uniform"}, ONES, np.ones(6)),
        ({"sampling": "weight"}, (1, 2, 3, 4, 5, 6), np.arange(1, 7)),
        ({"sampling": "size", "power": 1.0}, ONES, np.array(SIZES)),
        ({"sampling": "size", "power": 0.5}, ONES, np.sqrt(SIZES)),
    ],
)
def test_tasks_are_drawn_by_their_weights(fields, weights, expected):
    plan = plan_of(weights, per_batch=1, steps=20_000, **fields)
    counts = Counter(int(group.tasks[0]) for group in plan.epoch(0, 0))
    found = np.array([counts[k] for k in range(6)]) / 20_000
    share = expected / expected.sum()
    assert (np.abs(found - share) < 4 * np.sqrt(share * (1 - share) / 20_000)).all()


def test_too_few_tasks_or_rows_are_refused_by_name():
    with pytest.raises(UserError, match="per_batch is 9, but the set has 6 tasks"):
        plan_of(per_batch=9)
    with pytest.raises(
        UserError, match="task a has 40 examples in train, but config.tasks.rows is 41"
    ):
        plan_of(rows=41)


def arrays_of(single: bool = False) -> TaskArrays:
    rng = np.random.default_rng(0)
    choices = [rng.normal(size=(k + 2, 5)).astype(np.float32) for k in range(6)]
    sets = [rng.normal(size=(9, 5)).astype(np.float32) for _ in range(6)]
    conditions = {
        "which": np.arange(6, dtype=np.int32),
        "condition": np.stack([x.mean(axis=0) for x in choices]),
        "sentences": np.stack([x[:4] for x in sets]),
    }
    labels = rng.normal(size=(6, 2, 3)).astype(np.float32)
    drawn = {"condition": choices, "sentences": sets}
    return TaskArrays(conditions, drawn, {"labels": labels}, single)


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("single", [False, True])
def test_evaluation_gives_each_row_the_condition_of_its_task(size, single):
    arrays = arrays_of(single)
    data = dataset_of(arrays)
    rows = np.array([0, 250, 599, 60][:size])
    batch = batches.collate(data, rows, 32, size)
    task_B = task_rows()[np.append(rows, np.zeros(size - 4, int))]
    np.testing.assert_array_equal(batch["task"], task_B)
    np.testing.assert_array_equal(batch["labels"], arrays.rows["labels"][task_B])
    assert ("row" in batch) == (size == 64 and not single)
    for name, x in arrays.conditions.items():
        found = batch[name][batch["row"]] if "row" in batch else batch[name]
        np.testing.assert_array_equal(found, x[task_B])


def test_shapes_of_evaluation_do_not_depend_on_the_tasks_of_a_batch():
    data = dataset_of(arrays_of())
    for size in (4, 64):
        shapes = [
            {n: x.shape for n, x in batches.collate(data, rows, 32, size).items()}
            for rows in (np.array([0, 1, 2]), np.array([0, 250, 599]))
        ]
        assert shapes[0] == shapes[1]


def test_training_draws_each_condition_from_the_choices_of_its_task():
    arrays = arrays_of()
    data, seen = dataset_of(arrays), Counter()
    for group in plan_of(steps=300).epoch(0, 0):
        batch = batches.collate_group(data, group)
        assert batch["condition"].shape == (3, 5)
        assert batch["sentences"].shape == (3, 4, 5)
        assert "row" not in batch
        np.testing.assert_array_equal(batch["which"], group.tasks)
        np.testing.assert_array_equal(batch["task"], group.tasks.repeat(4))
        for u, k in enumerate(group.tasks):
            (at,) = np.flatnonzero(
                (arrays.choices["condition"][k] == batch["condition"][u]).all(axis=1)
            )
            seen[int(k), int(at)] += 1
            own = {x.tobytes() for x in arrays.choices["sentences"][k]}
            drawn = {x.tobytes() for x in batch["sentences"][u]}
            assert len(drawn) == 4 and drawn <= own
    assert len(seen) == sum(k + 2 for k in range(6))  # every description of every task
    again = batches.collate_group(data, plan_of(steps=300).epoch(0, 0)[0])
    first = batches.collate_group(data, plan_of(steps=300).epoch(0, 0)[0])
    for name, x in again.items():
        np.testing.assert_array_equal(x, first[name])


def test_each_row_of_a_step_has_its_own_condition_if_one_is_read_from_the_row():
    group = plan_of().epoch(0, 0)[0]
    own = np.array([0, 5, 11])
    batch = batches.collate_group(dataset_of(arrays_of(single=True)), group, own=own)
    np.testing.assert_array_equal(batch["which"], group.tasks.repeat(4)[own])
    assert len(batch["ids"]) == 3
    whole = batches.collate_group(dataset_of(arrays_of(single=True)), group)
    for name in ("ids", "condition", "sentences", "labels", "task", "label"):
        np.testing.assert_array_equal(batch[name], whole[name][own])


def test_shared_conditions_are_whole_in_every_process():
    group = plan_of().epoch(0, 0)[0]
    batch = batches.collate_group(dataset_of(arrays_of()), group, own=np.array([1]))
    assert len(batch["condition"]) == 3 and len(batch["task"]) == 1


def test_a_set_without_conditions_gives_each_row_its_task():
    group = plan_of().epoch(0, 0)[0]
    for arrays in (None, TaskArrays({})):
        batch = batches.collate_group(dataset_of(arrays), group)
        np.testing.assert_array_equal(batch["task"], task_rows()[group.rows])
        assert "condition" not in batch
    assert task_batches.of_batch(TaskArrays({}), np.array([2, 2]), 2).keys() == {"task"}
