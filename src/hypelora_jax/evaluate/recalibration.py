"""Another calibrator for a trained run: fit it, rewrite what rests on it, compare."""

from typing import Any

import numpy as np

from hypelora_jax import files, objectives
from hypelora_jax.calibration import bootstrap, calibrators, metrics
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import calibration_split, evaluation
from hypelora_jax.report.metric_tables import Table, title_of
from hypelora_jax.run import predictions, records
from hypelora_jax.run.paths import Run

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
    if not objectives.of(records.task_of(record)).probabilistic:
        raise UserError(
            f"{workdir} predicts a number, which has no calibrator; wanted a run of "
            "classes"
        )
    for split in ("calibration", "validation"):
        if calibration_split.examples(source, split) is None:
            evaluation.evaluate(workdir, split)
    run = evaluation.open_run(workdir)
    held, judged = (
        calibration_split.examples(source, s) for s in ("calibration", "validation")
    )
    if held is None or judged is None:
        raise UserError(
            f"{workdir} has no labels in calibration or validation; wanted both: give "
            "data.calibration and data.validation with labels"
        )
    new = evaluation.calibrated(run, *held[:2], method)
    _refresh(new)
    states = (run.calibrator, new.calibrator)
    was, now = map(calibrators.describe, states)
    probs = [calibrators.apply(state, judged.logits) for state in states]
    before, after = (_with_intervals(p, judged) for p in probs)
    result: dict[str, Any] = {"method": method, "was": was, "calibrator": now}
    result |= {"before": before, "after": after}
    change = bootstrap.paired(
        probs[1], probs[0], judged.labels, soft=judged.soft, names=_shown(judged)
    )
    return result | {"difference": change}


def table(result: dict[str, Any]) -> Table:
    """Before and after with intervals, and the change with its p-value, a row each."""
    rows = []
    for name, change in result["difference"].items():
        sides = (result[side][name] for side in ("before", "after"))
        said = f"{change['value']:+.3f} (p {change['p']:.2g})"
        rows.append((title_of(name), *map(_short, sides), said))
    columns = ("validation", result["was"], result["calibrator"], "change")
    return Table(f"calibrated by {result['method']}", columns, tuple(rows))


def _shown(held: calibration_split.Held) -> tuple[str, ...]:
    """SHOWN, and the distance to the raters' shares where there are any."""
    return SHOWN if held.soft is None else (*SHOWN, "soft_tv")


def _short(value: dict[str, float]) -> str:
    """Three digits: two intervals and a change fit 80 columns."""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _refresh(run: evaluation.Fitted) -> None:
    """Every metrics.json again, from saved logits; what else they say is kept."""
    own = Run(run.workdir)
    for split in own.predicted_splits():
        found = predictions.read(own.predictions_file(split))
        old = own.metrics_file(split)
        kept = files.read_json(old) if old.exists() else {"split": split}
        for name in ("temperature", "calibrator", "conformal"):
            kept.pop(name, None)
        for name in metrics.SOFT:  # of predictions saved without shares: not kept
            kept.pop(name, None)
        evaluation.write_metrics(
            run, split, found.logits, found.labels, kept, found.soft
        )


def _with_intervals(
    probs_NY: np.ndarray, held: calibration_split.Held
) -> dict[str, Any]:
    """Metrics of probabilities; those in SHOWN with bootstrap intervals."""
    rows, soft = (probs_NY, held.labels), held.soft
    intervals = bootstrap.intervals(*rows, soft=soft, names=_shown(held))
    return metrics.compute_all(*rows, soft=soft) | intervals
