"""Objectives whose loss and metrics compare each row's logits with its label."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hypelora_jax.calibration.arrays import total
from hypelora_jax.objectives import judging
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.types import (
    Adapter,
    Batch,
    Judge,
    Key,
    Loss,
    Objective,
    Params,
    Probabilities,
    Sums,
)


def row_objective(
    loss: Loss,
    result: Callable[[Labelled, Probabilities], dict[str, Any]],
    mean: Callable[[Labelled, Probabilities], float],
    unit: str,
    probabilistic: bool,
) -> Objective:
    """Build the objective of a row loss.

    `result` judges all labelled examples, and `mean` computes the metric `unit` alone
    of at least one.
    """

    def alone(state: Labelled, probabilities: Probabilities) -> float:
        return mean(state, probabilities) if len(state.labels) else math.nan

    return Objective(
        init=loss.init,
        reads=("label", "weight"),
        sums=_sums(loss),
        judge=Judge(judging.start, judging.update, judging.merge, result, alone),
        unit=unit,
        probabilistic=probabilistic,
    )


def _sums(loss: Loss) -> Sums:

    def sums(
        model: Any, params: Params, adapter: Adapter, batch: Batch, key: Key | None
    ) -> tuple[jax.Array, jax.Array]:
        logits_BY = model.classify(params, adapter, batch, key)
        loss_B = loss.apply(
            params.get("loss", {}), logits_BY, batch["label"], batch["weight"]
        )
        weight_B = batch["weight"].astype(loss_B.dtype)
        return total(loss_B, weight_B), jnp.sum(weight_B)

    return sums
