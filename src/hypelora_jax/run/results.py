"""The results of a run, read at once from all files of its folder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypelora_jax import files
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.errors import UserError
from hypelora_jax.run import calibrator, metric_log, predictions
from hypelora_jax.run.paths import Run
from hypelora_jax.run.predictions import Predictions

WAY_OUT = "restore the file, or run evaluate again"


class Results(NamedTuple):
    """What a run's files say about its training and its evaluated splits."""

    name: str
    config: dict[str, Any]  # config.json, including facts about the machine
    metrics: Mapping[str, dict[str, Any]]  # split -> raw metrics, "calibrated": {...}
    predictions: Mapping[str, Predictions] = {}
    calibrator: Any = None  # fitted after training; None if nothing was fitted
    curve: Sequence[dict[str, Any]] = ()  # rows of metrics.jsonl
    best_step: int | None = None  # of the chosen checkpoint
    train_temperature: float = 1.0  # learned in training; divides uncalibrated logits
    audit: dict[str, Any] | None = None  # of its condition, if one was made

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration alone, without facts about the machine."""
        return self.config.get("config", self.config)

    @property
    def seed(self) -> int | None:
        """The seed that the run was trained with, or None if its config has none."""
        return self.settings.get("seed")


def read(run: Run) -> Results:
    """Read the results of a run: config.json, and the other files that exist.

    Raises:
      UserError: the folder or its config.json does not exist, or a file is malformed.
    """
    if not run.config_file.exists():
        way_out = "train a run there first"
        if run.seeds():
            way_out = "give one of its seed_* folders"
        raise UserError(
            f"{run.path} has no config.json; expected a run folder; {way_out}"
        )
    config, curve = (
        files.read_json(run.config_file),
        metric_log.read_rows(run.metric_log),
    )
    state = calibrator.read(run)
    found = {
        split: files.read_json(run.metrics_file(split), WAY_OUT)
        for split in run.evaluated_splits()
    }
    return Results(
        name=run.name,
        config=config,
        metrics={s: _metrics(m, state is not None) for s, m in found.items()},
        predictions={
            split: predictions.read(run.predictions_file(split))
            for split in run.predicted_splits()
        },
        calibrator=state,
        curve=curve,
        best_step=_best_step(config, curve, found),
        train_temperature=train_temperature(found, state is not None),
        audit=_audit(run),
    )


def _audit(run: Run) -> dict[str, Any] | None:
    way_out = "restore the file, or run hypelora audit again"
    return files.read_json(run.audit_file, way_out) if run.audit_file.exists() else None


def _metrics(found: dict[str, Any], fitted: bool) -> dict[str, Any]:
    """Nest the calibrated metrics in the raw ones; the file nests raw in calibrated."""
    raw = found.get("uncalibrated", {})
    calibrated = {k: v for k, v in found.items() if k != "uncalibrated"}
    if not fitted or not raw:
        return {**calibrated, **raw}
    # task scores do not depend on the temperature, so the file may have them only once
    return {**calibrated, **raw, "calibrated": calibrated}


def train_temperature(found: Mapping[str, dict[str, Any]], fitted: bool) -> float:
    """Return the temperature that files name for uncalibrated probabilities, or 1."""
    for metrics in found.values():
        raw = metrics.get("uncalibrated", {}) if fitted else metrics
        if "temperature" in raw:
            return float(raw["temperature"])
    return 1.0


def _best_step(
    config: dict[str, Any],
    curve: Sequence[dict[str, Any]],
    found: Mapping[str, dict[str, Any]],
) -> int | None:
    """Return the step that was evaluated, else the one that `select_on` chooses."""
    if said := [metrics["step"] for metrics in found.values() if "step" in metrics]:
        return said[0]
    select_on = config.get("config", config).get("select_on", "calibration")
    epochs = [row for row in curve if row.get("split") != "train" and "nll" in row]
    chosen = [row for row in epochs if row["split"] == select_on] or [
        row for row in epochs if row["split"] == "validation"
    ]
    if not chosen:
        return None
    if select_on == "last":
        return chosen[-1]["step"]
    if select_on == "validation_score":
        return max(chosen, key=lambda row: row[scores.main(row)])["step"]
    if select_on == "margin":
        return max(epochs, key=lambda row: row.get("margin", -math.inf))["step"]
    return min(chosen, key=lambda row: row.get("task_nll", row["nll"]))["step"]
