"""Metrics of a file of predictions, whoever made it."""

import logging
from typing import Any

from etils import epath

from hypelora_jax.calibration import bootstrap, metrics
from hypelora_jax.errors import UserError
from hypelora_jax.run import prediction_files


def metrics_of_file(
    path: epath.PathLike,
    bins: int = 10,
    *,
    replicas: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute what `hypelora metrics` prints: `metrics.compute_all` of a file.

    Logits are used as they are, at temperature 1. Rows without a label are left out,
    with one warning that counts them.

    Args:
      path: a file that `run.prediction_files.read` accepts.
      bins: number of bins of the calibration errors.
      replicas: number of bootstrap replicas. If it is above 0, metrics that have an
        interval become {"value", "low", "high"}.
      level: confidence level of the intervals.
      seed: seed of the replicas, and of the labels drawn for ece_noise_floor and
        consistency_p.
    """
    return metrics_of(
        prediction_files.read(path),
        bins,
        replicas=replicas,
        level=level,
        seed=seed,
        name=str(path),
    )


def metrics_of(
    found: prediction_files.Labelled,
    bins: int = 10,
    *,
    replicas: int = 0,
    level: float = 0.95,
    seed: int = 0,
    name: str = "predictions",
) -> dict[str, Any]:
    """Compute the metrics of checked predictions; see `metrics_of_file`."""
    if bins < 1:
        raise UserError(f"bins is {bins}; expected at least 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; expected at least 0")
    if found.dropped:
        logging.getLogger(__name__).warning(
            "%s: %d rows without a label are left out", name, found.dropped
        )
    own: dict[str, Any] = {"bins": bins, "soft": found.soft, "seed": seed}
    out = metrics.compute_all(found.probs, found.labels, **own)
    if replicas:
        own |= {"replicas": replicas, "level": level}
        out |= bootstrap.intervals(found.probs, found.labels, **own)
    return out
