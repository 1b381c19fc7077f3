"""Fits another calibrator for a trained run, updates its metrics and compares both."""

from functools import partial
from typing import Any

import numpy as np

from hypelora_jax import files, objectives
from hypelora_jax.calibration import bootstrap, calibrators, metrics
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.data.sources import unions
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import calibration_split, evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.run import predictions, records
from hypelora_jax.train import scoring

SHOWN = ("accuracy", "nll", "brier", "ece", "classwise_ece")


def calibrate(workdir: str, method: str = "temperature") -> dict[str, Any]:
    """Fit a calibrator on the calibration split and use it from now on.

    Writes DIR/calibrator.json and the metrics.json of every evaluated split. The
    calibration and validation splits are evaluated first if they have not been yet.
    DIR/summary.json keeps the state at the end of training. The method "identity"
    removes the file, so that probabilities are those at the training temperature.

    Returns:
      `method`; `was` and `calibrator`, which describe the old and the new calibrator;
      `judged`, the split that is compared, validation; and what `compared` returns.

    Raises:
      UserError: there is no run, it is a regression, or labels are missing in the
        calibration or validation split.
    """
    source, record = records.open_record(workdir)
    loss = LossConfig(objective=records.settings_of(record).loss.objective)
    if not objectives.of(records.task_of(record), loss).probabilistic:
        raise UserError(
            f"{workdir} predicts a number, which has no calibrator; expected a run "
            "that predicts classes"
        )
    for split in ("calibration", "validation"):
        if calibration_split.examples(source, split) is None:
            evaluation.evaluate(workdir, split)
    old = evaluation.open_fitted(workdir)
    calibration, judged = (
        calibration_split.examples(source, s) for s in ("calibration", "validation")
    )
    if calibration is None or judged is None:
        split = "calibration" if calibration is None else "validation"
        raise UserError(
            f"{workdir} has no labels in the split {split}; expected some. Give "
            f"config.data.{split} with labels"
        )
    new = evaluation.calibrated(old, *calibration[:2], method)
    _refresh(new)
    states = (old.calibrator, new.calibrator)
    before, after = (calibrators.apply(state, judged.logits) for state in states)
    about = {"method": method, **described(*states), "judged": "validation"}
    return about | compared(before, after, judged)


def described(old: Any, new: Any) -> dict[str, str]:
    """Describe the old and the new calibrator, as `was` and `calibrator`."""
    return {"was": calibrators.describe(old), "calibrator": calibrators.describe(new)}


def compared(
    before_NY: np.ndarray, after_NY: np.ndarray, judged: Labelled
) -> dict[str, Any]:
    """Compare two sets of probabilities (N, Y) of the same rows.

    Returns:
      `before` and `after`, their metrics, and `difference`, after - before with
      intervals and p-values. The metrics in SHOWN (and soft_tv, if there are shares of
      raters) have intervals.
    """
    before, after = (_with_intervals(p, judged) for p in (before_NY, after_NY))
    change = bootstrap.paired(
        after_NY, before_NY, judged.labels, soft=judged.soft, names=_shown(judged)
    )
    return {"before": before, "after": after, "difference": change}


def _shown(data: Labelled) -> tuple[str, ...]:
    """SHOWN, and the distance to the raters' shares if there are any."""
    return SHOWN if data.soft is None else (*SHOWN, "soft_tv")


def _refresh(fitted: Fitted) -> None:
    """Rewrite every metrics.json from saved logits, and keep its other entries."""
    own = fitted.run
    for split in own.predicted_splits():
        found = predictions.read(own.predictions_file(split))
        old = own.metrics_file(split)
        kept: dict[str, Any] = {"split": split}
        if old.exists():
            kept = files.read_json(old)
        for name in ("temperature", "calibrator", "conformal"):
            kept.pop(name, None)
        for name in metrics.SOFT:  # stale if predictions have no shares
            kept.pop(name, None)
        if "tasks" in kept:
            kept["tasks"] = _of_tasks(fitted, found, kept["tasks"])
        evaluation.write_metrics(
            fitted, split, found.logits, found.labels, kept, found.soft
        )


def _of_tasks(
    fitted: Fitted, found: predictions.Predictions, old: dict[str, Any]
) -> dict[str, Any]:
    """Return the metrics of tasks with the new calibrator; distances stay."""
    tasks = fitted.session.task_set
    assert tasks is not None and found.ids is not None  # the split has them
    again = scoring.by_task(
        fitted.session.model.objective,
        found.logits,
        found.labels,
        unions.task_of(found.ids),
        partial(calibrators.apply, fitted.calibrator),
    )
    return {**old, **{tasks.names[k]: old[tasks.names[k]] | again[k] for k in again}}


def _with_intervals(probs_NY: np.ndarray, data: Labelled) -> dict[str, Any]:
    """Metrics of probabilities, with bootstrap intervals for those in SHOWN."""
    rows, soft = (probs_NY, data.labels), data.soft
    intervals = bootstrap.intervals(*rows, soft=soft, names=_shown(data))
    return metrics.compute_all(*rows, soft=soft) | intervals
