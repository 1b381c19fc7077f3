"""A set of tasks that are each other's negation, with drawn embeddings."""

import numpy as np

from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.data.tasks import TaskSet

C, WORDINGS = 12, 6
ATTRIBUTES = 8


def set_of(rng, held_out=()):
    """Tasks x and not_x by turns, with embeddings whose last entry is the polarity."""
    names, texts, vectors = [], [], []
    for k in range(2 * ATTRIBUTES):
        about = np.zeros(C)
        about[k // 2] = 3
        about[-1] = 1 if k % 2 == 0 else -1
        names.append(f"task_{k}")
        texts.append(tuple(f"{k} in wording {i}" for i in range(WORDINGS)))
        x = about + 0.3 * rng.normal(size=(WORDINGS, C))
        vectors.append(x.astype(np.float32))
    tasks = TaskSet(
        tuple(names),
        tuple(texts),
        (("no", "yes"),) * len(names),
        tuple(k in held_out for k in range(len(names))),
        (1.0,) * len(names),
        ((),) * len(names),
        tuple(texts[k ^ 1] for k in range(len(names))),
    )
    return tasks, TaskArrays({}, {"condition": vectors})


def described(found):
    return {k: x.astype(np.float64) for k, x in enumerate(found.choices["condition"])}
