"""Regression: one number per example, judged by its squared error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hypelora_jax.calibration.metrics import scores
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.errors import UserError
from hypelora_jax.objectives import training_loss
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.objectives.losses import squared_error
from hypelora_jax.objectives.row_objective import row_objective
from hypelora_jax.types import Loss, Objective, Probabilities

LOSSES = {"mse": lambda config: squared_error}
# Fields of the loss that only classes have, with the values that switch them off.
OF_CLASSES = {
    "temperature": 1,
    "anneal": "none",
    "smoothing": 0,
    "penalty": "none",
    "labels": "hard",
    "class_weights": "none",
}


def number_loss(config: LossConfig) -> Loss:
    """Build the training loss of numbers, the squared error of the first logit.

    Raises:
      UserError: the loss is not mse, or a field that only classes have is set.
    """
    loss = training_loss.build(config, LOSSES, "mse", "numbers")
    for field, value in OF_CLASSES.items():
        if (got := getattr(config, field)) != value:
            raise UserError(
                f"config.loss.{field} is {got!r}, but the loss mse has no {field}; "
                f"expected {value}, or a task of classes"
            )
    return loss


def regression(config: LossConfig, names: Sequence[str]) -> Objective:
    """Build the objective of a regression task; arguments as in `classification`."""
    loss = number_loss(config)

    def mean(state: Labelled, probabilities: Probabilities) -> float:
        del probabilities  # a regression has no probabilities
        error_N = state.logits[:, 0] - state.labels.astype(np.float64)
        return float(np.mean(error_N**2))

    def result(state: Labelled, probabilities: Probabilities) -> dict[str, Any]:
        if not len(state.labels):
            return {}
        score_N, label_N = state.logits[:, 0], state.labels
        out = {"n": len(label_N), "mse": mean(state, probabilities)}
        return {**out, **scores.table(names, score_N, label_N)}

    return row_objective(loss, result, mean, unit="mse", probabilistic=False)
