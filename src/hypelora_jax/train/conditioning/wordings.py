"""What is fitted to the wordings of training tasks before training, and then frozen."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.config.settings import Settings
from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import vectors
from hypelora_jax.train.conditioning import given_vectors, opposites

WHITENING = "cond/standard/whitening"  # the leaf, where a conditioner whitens
# Added to the variances within tasks, so that directions without any stay finite; those
# of all standardised vectors are 1. In the relabelling benchmark the nearest mean of a
# task is the right one about equally often for .03 to .3.
SHRINKAGE = 0.1


def leaves(
    settings: Settings,
    tasks: TaskSet | None,
    found: TaskArrays | None,
    moments: given_vectors.Moments | None,
) -> dict[str, np.ndarray]:
    """Return the frozen leaves of `condition.whiten` and `condition.sign`, by path.

    All are float64 and fitted to the descriptions of training tasks, as the conditioner
    scales them: by `moments`, mean and deviation (C,), if there are any.

    Raises:
      UserError: the data are not a set of tasks, or `condition.sign` finds no two
        opposite ones.
    """
    condition = settings.condition
    if tasks is None or found is None or "condition" not in found.choices:
        raise UserError(
            "config.condition.whiten and condition.sign are fitted to descriptions of "
            "tasks; expected data.source=tasks and condition.source=text, or "
            "condition.whiten=false and condition.sign=0"
        )
    scale = _scale(settings, moments)
    trained = [k for k, held_out in enumerate(tasks.held_out) if not held_out]
    choices = found.choices["condition"]
    size = choices[0].shape[1] // condition.parts
    with jax.enable_x64(True):
        described = {k: np.asarray(scale(jnp.float64(choices[k]))) for k in trained}
    last = {k: x[:, -size:] for k, x in described.items()}
    out = {}
    if condition.whiten:
        kernel_DD = whitening(last)
        out[WHITENING] = kernel_DD
        last = {k: x @ kernel_DD for k, x in last.items()}
        for k, x in described.items():
            described[k] = np.concatenate([x[:, :-size], last[k]], axis=1)
    if condition.sign:
        side = opposites.sides(tasks, described)
        kernel_C, bias = opposites.sign(side, described)
        axis_D = opposites.sign(side, last)[0]
        axis_D /= max(float(np.linalg.norm(axis_D)), 1e-12)
        out["cond/sign/kernel"], out["cond/sign/bias"] = kernel_C, bias
        out["cond/sign/axis"] = axis_D
    return out


def _scale(
    settings: Settings, moments: given_vectors.Moments | None
) -> Callable[[jax.Array], jax.Array]:
    """Return how the conditioner scales the descriptions of a run."""
    if moments is None:
        return vectors.unit_rms_of(settings.condition.parts)
    mean_C, std_C = moments
    return partial(vectors.standardised, standard={"mean": mean_C, "std": std_C})


def whitening(described: Mapping[int, np.ndarray]) -> np.ndarray:
    """Fit the matrix that shrinks what differs between the wordings of one task.

    It is c (S + SHRINKAGE I)^(-1/2), with the covariance S of descriptions about the
    mean of their task, where each task weighs the same, and c so that the mean square
    of the entries stays. Otherwise the form of a sentence hides what the task asks. It
    is the whitening of Fisher's discriminant analysis; in speaker recognition it is
    within-class covariance normalisation (Hatch et al. 2006). If each task has one
    description, it is the identity.

    Args:
      described: the vectors (n, D) of the descriptions of each task, float64.

    Returns:
      A symmetric matrix (D, D), float64.
    """
    means = {k: x.mean(axis=0) for k, x in described.items()}
    size = len(next(iter(means.values())))
    within_DD, whole_DD = np.zeros((size, size)), np.zeros((size, size))
    for k, x in described.items():
        away = x - means[k]
        within_DD += away.T @ away / len(x) / len(means)
        whole_DD += x.T @ x / len(x) / len(means)
    value_D, axes_DD = np.linalg.eigh(within_DD + SHRINKAGE * np.eye(size))
    kernel_DD = (axes_DD / np.sqrt(value_D)) @ axes_DD.T
    grown = np.trace(kernel_DD @ whole_DD @ kernel_DD) / max(np.trace(whole_DD), 1e-12)
    return kernel_DD / np.sqrt(max(grown, 1e-12))
