"""The direction that tells a description from its negation, found in a set of tasks."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.config.settings import Settings
from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import vectors
from hypelora_jax.train.conditioning import task_conditions

RIDGE = 0.3  # penalty of a squared weight, where the mean squared error counts 1


def pairs(tasks: TaskSet) -> list[tuple[int, int]]:
    """Return the training tasks that are each other's negation.

    These are tasks of which one has a description of the other as a negation.
    """
    owner = {
        text: k
        for k, texts in enumerate(tasks.descriptions)
        for text in texts
        if not tasks.held_out[k]
    }
    found = {
        tuple(sorted((k, owner[text])))
        for k, texts in enumerate(tasks.negations)
        for text in texts
        if text in owner and owner[text] != k and not tasks.held_out[k]
    }
    return sorted((a, b) for a, b in found)


def leaves(
    settings: Settings, tasks: TaskSet | None, found: TaskArrays | None
) -> dict[str, np.ndarray]:
    """Return the frozen leaves of `condition.sign`, by path; see `sign`.

    Raises:
      UserError: the data are not a set of tasks, or no two of them are opposite.
    """
    if tasks is None or found is None or "condition" not in found.choices:
        raise UserError(
            "config.condition.sign learns from descriptions of tasks that are each "
            "other's negation; expected data.source=tasks and condition.source=text, "
            "or condition.sign=0"
        )
    layers = settings.condition.layers
    scale = vectors.unit_rms_of(layers)
    if settings.condition.standardise:
        ((mean_C, std_C),) = task_conditions.moments(found, tasks).values()
        standard = {"mean": mean_C, "std": std_C}
        scale = partial(vectors.standardised, standard=standard)
    with jax.enable_x64(True):
        each = [
            np.asarray(scale(jnp.asarray(x, jnp.float64)))
            for x in found.choices["condition"]
        ]
    kernel_C, bias = sign(tasks, each)
    last = [np.split(x, layers, axis=-1)[-1] for x in each]
    axis_D = sign(tasks, last)[0]
    axis_D /= max(float(np.linalg.norm(axis_D)), 1e-12)
    return {
        "cond/sign/kernel": kernel_C,
        "cond/sign/bias": bias,
        "cond/sign/axis": axis_D,
    }


def sign(
    tasks: TaskSet, described: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the sign b + w . x of a description x, near 1 or -1 for opposite tasks.

    Which of two opposite tasks is the negation is not said. The first principal axis of
    the differences between their mean descriptions decides it, for all pairs alike.
    Then w and b are the ridge regression of these signs on the descriptions of all
    pairs, where each task weighs the same.

    Args:
      tasks: the set.
      described: the vectors (n, C) of the descriptions of each task, float64, as the
        conditioner scales them.

    Returns:
      w (C,) and b (), float64.

    Raises:
      UserError: no two training tasks are each other's negation.
    """
    opposite = pairs(tasks)
    if not opposite:
        raise UserError(
            "config.condition.sign learns from tasks that are each other's negation, "
            "but no description of a training task is among the negations of another; "
            "expected some in config.tasks.file, or condition.sign=0"
        )
    x = described
    apart_PC = np.stack([x[a].mean(axis=0) - x[b].mean(axis=0) for a, b in opposite])
    axis_C = np.linalg.svd(apart_PC, full_matrices=False)[2][0]
    side_P = np.where(apart_PC @ axis_C < 0, -1.0, 1.0)
    side_P *= side_P[0]  # the sign of an axis is arbitrary: the first task is 1
    side_of: dict[int, float] = {}
    for (a, b), side in zip(opposite, side_P, strict=True):
        side_of |= {a: side, b: -side}
    mean_C = np.mean([x[k].mean(axis=0) for k in side_of], axis=0)
    mean = np.mean([*side_of.values()])
    rows, wanted = [], []
    for k, side in side_of.items():
        root = 1 / np.sqrt(len(x[k]) * len(side_of))  # so that tasks weigh the same
        rows.append(root * (x[k] - mean_C))
        wanted.append(np.full(len(x[k]), root * (side - mean)))
    away_NC, y_N = np.concatenate(rows), np.concatenate(wanted)
    if len(away_NC) < len(mean_C):  # the same regression in the space of the rows
        gram_NN = away_NC @ away_NC.T + RIDGE * np.eye(len(away_NC))
        kernel_C = away_NC.T @ np.linalg.solve(gram_NN, y_N)
    else:
        gram_CC = away_NC.T @ away_NC + RIDGE * np.eye(len(mean_C))
        kernel_C = np.linalg.solve(gram_CC, away_NC.T @ y_N)
    return kernel_C, np.asarray(mean - mean_C @ kernel_C)
