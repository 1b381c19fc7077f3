import dataclasses

import numpy as np
import pytest

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import sources
from hypelora_jax.data.sources import synthetic
from hypelora_jax.data.tables import Table, calibration_size, hold_out, take
from hypelora_jax.errors import UserError


def table(n, classes=3):
    label = (np.arange(n) % classes).astype(np.int32)
    return Table(np.arange(n), [str(i) for i in range(n)], None, label)


@pytest.mark.parametrize(
    ("n", "size"), [(60, 30), (500, 100), (5000, 500), (90_000, 2000), (1, 0)]
)
def test_calibration_size(n, size):
    assert calibration_size(n, 0.1) == size


def test_hold_out_is_stratified_and_disjoint():
    kept, held = hold_out(table(301), 40, seed=0, salt=0)
    counts = np.bincount(held.label)
    assert counts.max() - counts.min() <= 1 and counts.sum() == 40
    assert sorted([*kept.ids, *held.ids]) == list(range(301))


def test_hold_out_depends_on_seed_and_ids_alone():
    first = hold_out(table(100), 20, seed=1, salt=0)[1]
    order = np.random.default_rng(0).permutation(100)
    again = hold_out(take(table(100), order), 20, seed=1, salt=0)[1]
    other = hold_out(table(100), 20, seed=2, salt=0)[1]
    assert set(first.ids) == set(again.ids) != set(other.ids)


def test_hold_out_leaves_every_class_in_train():
    rare = table(50, classes=2)
    rare.label[:] = 0
    rare.label[7] = 1
    kept, held = hold_out(rare, 25, seed=0, salt=0)
    assert kept.label.sum() == 1 and held.label.sum() == 0


def test_hold_out_of_numbers_spans_their_range():
    numbers = table(1000)._replace(label=np.linspace(0, 5, 1000, dtype=np.float32))
    held = hold_out(numbers, 100, seed=0, salt=0)[1]
    assert len(held.ids) == 100
    assert abs(held.label.mean() - 2.5) < 0.1


def test_max_examples_cuts_train_after_the_hold_out():
    config = DataConfig(source="synthetic", num_examples=200)
    whole = sources.load(config, seed=0).splits
    cut = sources.load(
        DataConfig(**{**vars(config), "max_examples": 50}), seed=0
    ).splits
    np.testing.assert_array_equal(cut["train"].ids, whole["train"].ids[:50])
    assert len(cut["calibration"].ids) == len(whole["calibration"].ids)


def test_classes_are_numbered_as_the_config_says():
    config = DataConfig(source="synthetic", num_examples=64, num_classes=3)
    names = ("class_f", "other", "class_b", "class_d")
    plain = sources.load(config, seed=0)
    own = sources.load(dataclasses.replace(config, classes=names), seed=0)
    assert own.task == plain.task._replace(labels=names)
    for split, table in plain.splits.items():
        assert own.splits[split].text == table.text
        labels = [names[y] for y in own.splits[split].label]
        assert labels == [plain.task.labels[y] for y in table.label]
        np.testing.assert_array_equal(own.splits[split].soft[:, [2, 3, 0]], table.soft)
        assert not own.splits[split].soft[:, 1].any()
    with pytest.raises(UserError, match="labels of the data are class_b, class_d, cl"):
        sources.load(dataclasses.replace(config, classes=names[:2]), seed=0)
    for wrong in (("a",), ("a", "a")):
        with pytest.raises(UserError, match="classes is .* expected two or more diff"):
            DataConfig(classes=wrong)


def test_missing_split_is_one_line():
    splits = sources.load(DataConfig(source="synthetic"), seed=0).splits
    with pytest.raises(UserError, match="no split 'dev', only train, cal"):
        splits["dev"]


def test_synthetic_is_fixed_by_seed_and_ids_are_disjoint():
    config = DataConfig(source="synthetic", num_examples=64, num_classes=4)
    one, two = (sources.load(config, seed=3).splits for _ in range(2))
    other = sources.load(config, seed=4).splits
    assert one["train"].text == two["train"].text != other["train"].text
    assert one["validation"].text != one["test"].text
    ids = np.concatenate([t.ids for t in one.values()])
    assert len(set(ids)) == len(ids) == 64 + 3 * 100


@pytest.mark.parametrize("classes", [2, 5])
def test_synthetic_labels_follow_their_true_probabilities(classes):
    drawn = synthetic.draw(np.random.default_rng(0), 4000, classes)
    np.testing.assert_allclose(drawn.soft.sum(1), 1, rtol=1e-6)
    truth = drawn.soft[np.arange(4000), drawn.label]
    # mean NLL of the truth is its entropy, within four standard errors
    error = 4 * np.log(truth).std() / np.sqrt(4000)
    assert abs(-np.log(truth).mean() - synthetic.entropy(drawn)) < error
    for k in range(classes):
        assert abs((drawn.label == k).mean() - drawn.soft[:, k].mean()) < 0.03


def test_synthetic_entropy_is_logged_and_classes_are_bounded(caplog):
    caplog.set_level("INFO")
    sources.load(DataConfig(source="synthetic"), seed=0)
    assert "synthetic train: entropy 0.3" in caplog.text
    with pytest.raises(UserError, match="num_classes is 15; expected 2 to 14"):
        sources.load(DataConfig(source="synthetic", num_classes=15), seed=0)


def test_words_alone_decide_the_class():
    drawn = synthetic.draw(np.random.default_rng(0), 200, 2)
    guess = [t.count("dond") + t.count("dind") for t in drawn.text]
    both = [t.count("bond") + t.count("bind") for t in drawn.text]
    decided = np.asarray(guess) != np.asarray(both)
    right = (np.asarray(guess) > np.asarray(both)) == (drawn.label == 1)
    assert right[decided].mean() > 0.85
