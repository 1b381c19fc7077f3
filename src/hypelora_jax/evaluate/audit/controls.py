"""The conditions of the controls: what each task is given in place of its own.

Each control is a list of draws. A draw has an entry for every task, like the conditions
of a `TaskArrays`, and the tasks are answered with it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from hypelora_jax.data.formats.cells import listed
from hypelora_jax.data.layouts.task_batches import Entries, TaskArrays
from hypelora_jax.data.tasks import TaskSet

DRAWS = 2  # of the controls that have more than one
NONSENSE = (
    "table quickly under seven blue of walking",
    "zzzzzzzzzzzzzzzz",
    "q",
    "the the the the the",
    "lorem ipsum dolor sit amet",
    "xqv plk wrt mnb",
    "12 7 4095 33",
    ".",
)

Embed = Callable[[Sequence[Sequence[str]]], list[np.ndarray]]  # texts to (n, C) each
Draws = Mapping[str, list[Entries]]


def draws(
    arrays: TaskArrays, tasks: TaskSet, wanted: Sequence[int], embed: Embed, seed: int
) -> dict[str, list[Entries]]:
    """Return the draws of every control that the run's conditions allow.

    `matched` is the condition of the task. `shuffled` is that of another task, `mean`
    the mean over training tasks, `nearest` that of the training task whose descriptions
    are most alike, `nonsense` and `random_vector` are junk, and `paraphrased` and
    `negated` are the fields `paraphrases` and `negations` of the tasks.

    Args:
      arrays: what the tasks of the run give to batches.
      tasks: the set of tasks.
      wanted: indices of the tasks that are audited.
      embed: the frozen encoder of the run.
      seed: decides which tasks are exchanged, and the random vectors.
    """
    rng = np.random.default_rng(seed)
    trained = np.flatnonzero(~np.asarray(tasks.held_out))
    out: dict[str, list[Entries]] = {"matched": [arrays.conditions]}
    out["shuffled"] = [
        _taken(arrays.conditions, other(rng, len(tasks.names), trained))
        for _ in range(DRAWS if len(trained) > 2 else 1)
    ]
    vectors = {n: x for n, x in arrays.conditions.items() if x.dtype.kind == "f"}
    if len(vectors) < len(arrays.conditions):
        return out  # learned rows have no mean, and no description
    mean = {n: x[trained].mean(axis=0) for n, x in vectors.items()}
    out["mean"] = [
        {n: np.repeat(x[None], len(tasks.names), 0) for n, x in mean.items()}
    ]
    out["nearest"] = [_taken(vectors, nearest(vectors, trained))]
    out["random_vector"] = [
        {n: _random(rng, x, trained) for n, x in vectors.items()} for _ in range(DRAWS)
    ]
    if "condition" not in vectors:
        return out
    for name, field in {"paraphrased": "paraphrases", "negated": "negations"}.items():
        some = getattr(tasks, field)
        if without := [tasks.names[k] for k in wanted if not (some and some[k])]:
            if len(without) < len(wanted):
                told = (name, field, listed(without))
                logging.warning("no row %s: there are no %s of %s", *told)
            continue
        out[name] = _worded(vectors, embed(some))
    junk = embed([NONSENSE])[0]
    at = np.arange(len(tasks.names))
    out["nonsense"] = [
        {**vectors, "condition": junk[(at + d) % len(junk)]} for d in range(DRAWS)
    ]
    return out


def other(rng: np.random.Generator, count: int, trained: np.ndarray) -> np.ndarray:
    """Return the index of a training task for each task, never its own if there is one.

    Training tasks are exchanged among themselves, so each occurs once.
    """
    out = rng.choice(trained, count)
    order = rng.permutation(trained)
    out[order] = np.roll(order, 1)
    return out


def nearest(vectors: Entries, trained: np.ndarray) -> np.ndarray:
    """Return the training task, other than itself, most like each task by its cosine.

    Vectors are centred at the mean of training tasks, which all descriptions share.
    """
    x = np.concatenate([v.reshape(len(v), -1) for v in vectors.values()], axis=1)
    x = x.astype(np.float64) - x[trained].mean(axis=0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosine = x @ x[trained].T
    cosine[trained, np.arange(len(trained))] = -np.inf
    return trained[np.argmax(cosine, axis=1)]


def _random(rng: np.random.Generator, x: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Draw vectors with the mean and deviation of each entry over training tasks."""
    mean, std = x[trained].mean(axis=0), x[trained].std(axis=0)
    return (mean + std * rng.normal(size=x.shape)).astype(np.float32)


def _taken(conditions: Entries, source: np.ndarray) -> Entries:
    return {n: x[source] for n, x in conditions.items()}


def _worded(vectors: Entries, found: list[np.ndarray]) -> list[Entries]:
    """Return draws of other words: the first and the last text of each task."""
    fixed = vectors["condition"]
    out = []
    for at in (0, -1):
        rows = [x[at] if len(x) else own for x, own in zip(found, fixed, strict=True)]
        out.append({**vectors, "condition": np.stack(rows)})
    return out
