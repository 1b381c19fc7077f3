"""Another calibrator for a trained run: fit it, rewrite what rests on it, compare."""

from typing import Any

import numpy as np

from hypelora_jax import files, objectives
from hypelora_jax.calibration import bootstrap, calibrators, metrics
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import calibration_split, evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.run import predictions, records

SHOWN = ("accuracy", "nll", "brier", "ece", "classwise_ece")


def calibrate(workdir: str, method: str = "temperature") -> dict[str, Any]:
    """Fit a calibrator on the calibration split and use it from now on.

    Writes DIR/calibrator.json and the metrics.json of every evaluated split; the
    calibration and validation splits are evaluated first where they are not.
    DIR/summary.json stays as training ended. The method "identity" fits none: the file
    is removed, and probabilities are those at the training temperature.

    Returns:
      method; `was` and `calibrator`, what described the old one and describes the new;
      `before` and `after`, metrics of the validation split, those in SHOWN (and
      soft_tv, where there are shares of raters) with intervals; `difference`, after -
      before with intervals and p-values.

    Raises:
      UserError: no run, a regression, or no labels to fit on or to judge by.
    """
    source, record = records.open_record(workdir)
    loss = LossConfig(objective=records.settings_of(record).loss.objective)
    if not objectives.of(records.task_of(record), loss).probabilistic:
        raise UserError(
            f"{workdir} predicts a number, which has no calibrator; wanted a run of "
            "classes"
        )
    for split in ("calibration", "validation"):
        if calibration_split.examples(source, split) is None:
            evaluation.evaluate(workdir, split)
    old = evaluation.open_fitted(workdir)
    held, judged = (
        calibration_split.examples(source, s) for s in ("calibration", "validation")
    )
    if held is None or judged is None:
        raise UserError(
            f"{workdir} has no labels in calibration or validation; wanted both: give "
            "data.calibration and data.validation with labels"
        )
    new = evaluation.calibrated(old, *held[:2], method)
    _refresh(new)
    states = (old.calibrator, new.calibrator)
    was, now = map(calibrators.describe, states)
    probs = [calibrators.apply(state, judged.logits) for state in states]
    before, after = (_with_intervals(p, judged) for p in probs)
    result: dict[str, Any] = {"method": method, "was": was, "calibrator": now}
    result |= {"before": before, "after": after}
    change = bootstrap.paired(
        probs[1], probs[0], judged.labels, soft=judged.soft, names=_shown(judged)
    )
    return result | {"difference": change}


def _shown(held: Labelled) -> tuple[str, ...]:
    """SHOWN, and the distance to the raters' shares where there are any."""
    return SHOWN if held.soft is None else (*SHOWN, "soft_tv")


def _refresh(fitted: Fitted) -> None:
    """Every metrics.json again, from saved logits; what else they say is kept."""
    own = fitted.run
    for split in own.predicted_splits():
        found = predictions.read(own.predictions_file(split))
        old = own.metrics_file(split)
        kept = files.read_json(old) if old.exists() else {"split": split}
        for name in ("temperature", "calibrator", "conformal"):
            kept.pop(name, None)
        for name in metrics.SOFT:  # of predictions saved without shares: not kept
            kept.pop(name, None)
        evaluation.write_metrics(
            fitted, split, found.logits, found.labels, kept, found.soft
        )


def _with_intervals(probs_NY: np.ndarray, held: Labelled) -> dict[str, Any]:
    """Metrics of probabilities; those in SHOWN with bootstrap intervals."""
    rows, soft = (probs_NY, held.labels), held.soft
    intervals = bootstrap.intervals(*rows, soft=soft, names=_shown(held))
    return metrics.compute_all(*rows, soft=soft) | intervals
