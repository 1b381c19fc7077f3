"""How near conditions are to those of training, around which confidence is measured."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hypelora_jax.data.tasks import TaskSet


class Nearest(NamedTuple):
    """The training task that is most like a vector.

    `distance` is 1 minus the cosine to the nearest of its descriptions, 0 to 2.
    Confidence has been measured near training descriptions; far from them it has not.
    """

    nearest: str
    distance: float


def nearest_of(
    tasks: TaskSet, choices: Sequence[np.ndarray], parts: int = 1
) -> Callable[[np.ndarray], Nearest]:
    """Return a function of a vector (C,) that finds its nearest training task.

    `choices` are the vectors (n, C) of the descriptions of each task. The last of their
    `parts` (`condition.parts`) is compared, which is the one that the network reads.
    """
    size = choices[0].shape[1] // parts
    own = [k for k, held_out in enumerate(tasks.held_out) if not held_out]
    x_MD = _unit(np.concatenate([choices[k][:, -size:] for k in own]))
    task_M = np.repeat(own, [len(choices[k]) for k in own])

    def nearest(vector_C: np.ndarray) -> Nearest:
        cosine_M = x_MD @ _unit(vector_C[-size:])
        best = int(np.argmax(cosine_M))
        distance = max(1 - float(cosine_M[best]), 0.0)
        return Nearest(tasks.names[task_M[best]], distance)

    return nearest


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
