"""The direction that tells a description from its negation, found in a set of tasks."""

from collections.abc import Mapping

import numpy as np
import scipy
from absl import logging

from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError

# The fit minimises the mean loss plus PENALTY / 2 |w|^2. Of .01, .003 and .001 it gives
# unseen wordings of the relabelling benchmark the highest likelihood.
PENALTY = 0.001


def pairs(tasks: TaskSet) -> list[tuple[int, int]]:
    """Return the training tasks that are each other's negation.

    These are tasks of which one has a description of the other as a negation.

    Raises:
      UserError: there are none.
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
    if not found:
        raise UserError(
            "config.condition.sign learns from tasks that are each other's negation, "
            "but no description of a training task is among the negations of another; "
            "expected some in config.tasks.file, or condition.sign=0"
        )
    return sorted((a, b) for a, b in found)


def sides(tasks: TaskSet, described: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Return 1 or -1 for each training task whose negation trains too.

    Which of two opposite tasks is the negation is not said. The first principal axis of
    the differences between their mean descriptions decides it, for all pairs alike.

    Args:
      tasks: the set.
      described: the vectors (n, C) of the descriptions of each training task, float64,
        as the conditioner scales them.

    Raises:
      UserError: no two training tasks are each other's negation.
    """
    opposite, x = pairs(tasks), described
    apart_PC = np.stack([x[a].mean(axis=0) - x[b].mean(axis=0) for a, b in opposite])
    axis_C = np.linalg.svd(apart_PC, full_matrices=False)[2][0]
    side_P = np.where(apart_PC @ axis_C < 0, -1.0, 1.0)
    side_P *= side_P[0]  # the sign of an axis is arbitrary: the first task is 1
    out: dict[int, float] = {}
    for (a, b), side in zip(opposite, side_P, strict=True):
        out |= {a: float(side), b: -float(side)}
    return out


def sign(
    side: Mapping[int, float], described: Mapping[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Fit w and b, where sigmoid(b + w . x) is the probability of side 1.

    It is the logistic regression of the side on the descriptions x of the tasks that
    have one, where each task weighs the same, with PENALTY / 2 |w|^2.

    Args:
      side: 1 or -1 by task, see `sides`.
      described: the vectors (n, C) of the descriptions of each task, float64.

    Returns:
      w (C,) and b (), float64.
    """
    counts = [len(described[k]) for k in side]
    weight_N = np.repeat([1 / (n * len(side)) for n in counts], counts)
    return _logistic(
        np.concatenate([described[k] for k in side]),
        np.repeat([*side.values()], counts),
        weight_N,
    )


def _logistic(
    x_NC: np.ndarray, side_N: np.ndarray, weight_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return w and b of the penalised logistic regression of sides 1 and -1."""

    def loss(wb: np.ndarray) -> tuple[float, np.ndarray]:
        w_C, b = wb[:-1], wb[-1]
        margin_N = side_N * (x_NC @ w_C + b)
        value = weight_N @ np.logaddexp(0, -margin_N) + PENALTY / 2 * w_C @ w_C
        slope_N = -weight_N * side_N * scipy.special.expit(-margin_N)
        return value, np.append(slope_N @ x_NC + PENALTY * w_C, slope_N.sum())

    start = np.zeros(x_NC.shape[1] + 1)
    options = {"maxiter": 10_000, "maxfun": 20_000, "gtol": 1e-7, "ftol": 0.0}
    found = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options=options
    )
    if not found.success:
        logging.warning("the fit of condition.sign ended early: %s", found.message)
    return found.x[:-1], np.asarray(found.x[-1])
