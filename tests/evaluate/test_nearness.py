"""How near the conditions of tasks are to the descriptions of training."""

import numpy as np

from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.train.conditioning.nearness import nearest_of

TASKS = TaskSet(
    ("a", "b", "new"),
    (("",),) * 3,
    (("no", "yes"),) * 3,
    held_out=(False, False, True),
    weights=(1.0,) * 3,
)
CHOICES = [
    np.array([[1.0, 0, 0], [0, 2.0, 0]]),
    np.array([[0, 0, 3.0]]),
    np.array([[3.0, 0, 4.0]]),
]


def test_the_nearest_single_description_of_training_counts():
    asked = np.array([[0, 1.0, 0], [3.0, 0, 4.0], [-1.0, 0, 0], [0, 0, 0]])
    found = [nearest_of(TASKS, CHOICES)(x) for x in asked]
    assert [one.nearest for one in found[:2]] == ["a", "b"]
    distances = [one.distance for one in found]
    np.testing.assert_allclose(distances, [0, 0.2, 1, 1], atol=1e-12)


def test_of_several_parts_the_last_one_counts():
    rng = np.random.default_rng(0)
    longer = [np.hstack([rng.normal(size=(len(x), 6)), x]) for x in CHOICES]
    nearest = nearest_of(TASKS, longer, parts=3)
    found = nearest(np.array([9.0, -9, 9, -9, 9, -9, 3, 0, 4]))
    assert found.nearest == "b"
    np.testing.assert_allclose(found.distance, 0.2, atol=1e-12)
