"""Class weights: the formula, what is refused, and the batch they travel in."""

import numpy as np
import pytest

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import batches, sources
from hypelora_jax.data.class_weights import class_weights, example_weights
from hypelora_jax.data.iterator import train_iterator
from hypelora_jax.data.tokens import tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.families.roberta import ROBERTA

NAMES = ("no", "yes")
LABEL_N = np.repeat(np.arange(2, dtype=np.int32), (90, 10))


def test_balanced_is_the_formula_by_hand():
    got = class_weights("balanced", NAMES, LABEL_N)
    assert got == pytest.approx((100 / (2 * 90), 100 / (2 * 10)), abs=0)
    unlabelled = np.append(LABEL_N, [-1, -1])
    assert class_weights("balanced", NAMES, unlabelled) == got


def test_soft_labels_count_with_their_shares():
    soft_NY = np.array([[0.75, 0.25], [1, 0], [0.25, 0.75]], np.float32)
    label_N = np.argmax(soft_NY, axis=1)
    got = class_weights("balanced", NAMES, label_N, soft_NY)
    assert got == pytest.approx((3 / (2 * 2), 3 / (2 * 1)))
    weight_N = example_weights(got, label_N, soft_NY)
    np.testing.assert_allclose(weight_N, [0.9375, 0.75, 1.3125])


def test_numbers_are_taken_as_they_are_and_none_is_no_weight():
    assert class_weights((1, 9.5), NAMES, LABEL_N) == (1.0, 9.5)
    weight_N = example_weights((1.0, 9.5), LABEL_N)
    assert weight_N.dtype == np.float32
    np.testing.assert_array_equal(weight_N, [1] * 90 + [9.5] * 10)
    assert class_weights("none", NAMES, LABEL_N) == ()
    assert example_weights((), LABEL_N) is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((1.0, 2.0, 3.0), "has 3 numbers; expected 2, one for each class: no, yes"),
        ("balanced", "train has no example of the class 'yes'"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(wanted, message):
    with pytest.raises(UserError, match=message):
        class_weights(wanted, NAMES, np.zeros(5, np.int32))


def test_training_batches_carry_them_and_evaluation_does_not():
    config = DataConfig(source="synthetic", num_examples=96)
    table = sources.load(config, seed=0).splits["train"]
    words = tokenizer(None, ROBERTA.tokens, 1)
    data = batches.dataset(table, words, 40)
    weight_N = example_weights((0.5, 3.0), data.label)
    first = next(train_iterator(data, (40,), 32, 0, 1, weight_N=weight_N))
    np.testing.assert_array_equal(first["weight"], np.where(first["label"], 3, 0.5))
    padded = batches.collate(data, np.array([4, 2]), 40, 5, weight_N=weight_N)
    np.testing.assert_array_equal(padded["weight"][:2], weight_N[[4, 2]])
    assert not padded["weight"][2:].any()
    half = np.array([1, 4])
    own = batches.collate(data, np.array([4, 2]), 40, 5, own=half, weight_N=weight_N)
    np.testing.assert_array_equal(own["weight"], [weight_N[2], 0])
    for batch in batches.eval_batches(data, (40,), 32):
        assert set(batch["weight"]) <= {0.0, 1.0}
