"""Classification: a logit per class, judged by the probabilities of the classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.objectives import training_loss
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.objectives.losses import LOSSES
from hypelora_jax.objectives.row_objective import row_objective
from hypelora_jax.types import Loss, Objective, Probabilities


def class_loss(config: LossConfig) -> Loss:
    """Build the training loss of classes; "auto" is cross-entropy.

    Raises:
      UserError: the loss is not one for classes; see `training_loss.build`.
    """
    return training_loss.build(config, LOSSES, "cross_entropy", "classes")


def classification(config: LossConfig, names: Sequence[str]) -> Objective:
    """Build the objective of a classification task.

    Args:
      config: the training loss.
      names: scores of the task, keys of `calibration.metrics.scores.SCORES`.
    """
    loss = class_loss(config)

    def result(state: Labelled, probabilities: Probabilities) -> dict[str, Any]:
        if not len(state.labels):
            return {}
        probs_NY = probabilities(state.logits)
        out = metrics.compute_all(probs_NY, state.labels, soft=state.soft)
        best_N = np.argmax(probs_NY, axis=1)
        return {**out, **scores.table(names, best_N, state.labels)}

    def mean(state: Labelled, probabilities: Probabilities) -> float:
        return float(metrics.nll(probabilities(state.logits), state.labels))

    return row_objective(loss, result, mean, unit="nll", probabilistic=True)
