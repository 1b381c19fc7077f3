"""How near the conditions of tasks are to the descriptions of training."""

import numpy as np
import pytest

from hypelora_jax.calibration import calibrators
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.data.batches import Dataset
from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.data.tokens import Encoded
from hypelora_jax.evaluate import calibration_split
from hypelora_jax.objectives.classification import classification
from hypelora_jax.train.conditioning.nearness import nearest_of

NAMES, HELD_OUT = ("a", "b", "new", "same"), (False, False, True, True)
TASKS = TaskSet(NAMES, (("",),) * 4, (("no", "yes"),) * 4, HELD_OUT, (1.0,) * 4)
CHOICES = [
    np.array([[1.0, 0, 0], [0, 2.0, 0]]),
    np.array([[0, 0, 3.0]]),
    np.array([[3.0, 0, 4.0]]),
    np.array([[0, 5.0, 0]]),
]
ARRAYS = TaskArrays(
    {"condition": np.stack([x.mean(axis=0) for x in CHOICES])}, {"condition": CHOICES}
)


def test_the_nearest_single_description_of_training_counts():
    asked = np.array([[0, 1.0, 0], [3.0, 0, 4.0], [-1.0, 0, 0], [0, 0, 0]])
    found = [nearest_of(TASKS, CHOICES)(x) for x in asked]
    assert [one.nearest for one in found[:2]] == ["a", "b"]
    distances = [one.distance for one in found]
    np.testing.assert_allclose(distances, [0, 0.2, 1, 1], atol=1e-12)


def test_only_held_out_tasks_have_a_distance_next_to_their_metrics():
    task = np.array([0, 2, 2, 3])
    tokens, label = Encoded([], [], 0), np.array([0, 1, 0, 1], np.int32)
    data = Dataset(tokens, label, None, task, 0, task=task, tasks=ARRAYS)
    known = (TASKS, classification(LossConfig(), ()), calibrators.Temperature(1.0))
    logits = np.zeros((4, 2))
    found = calibration_split.by_task(*known, data, logits)["tasks"]
    assert found.keys() == {"a", "new", "same"} and "distance" not in found["a"]
    assert found["new"]["nearest"] == "b" and found["same"]["nearest"] == "a"
    assert found["new"]["distance"] == pytest.approx(0.2)
    assert found["same"]["distance"] == pytest.approx(0)
    plain = data._replace(tasks=TaskArrays({}))  # a run that reads no descriptions
    found = calibration_split.by_task(*known, plain, logits)["tasks"]
    assert "distance" not in found["new"]
