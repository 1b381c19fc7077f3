"""Fits a calibrator on a file of predictions, from any program, and applies it."""

import json
from typing import Any

import numpy as np
from absl import logging

from hypelora_jax import files
from hypelora_jax.calibration import calibrators
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate.recalibration import compared, described
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.run import prediction_files
from hypelora_jax.run.prediction_files import Contents

FOLDS = 10  # each tenth of the rows is judged by a fit on the others


def calibrate(
    path: str, method: str = "temperature", apply: str = "", output: str = ""
) -> dict[str, Any]:
    """Fit a calibrator on the labelled rows of a file, without any run.

    With `apply`, the probabilities of all rows of that file are calibrated and written
    to `output`, with whatever else the file has.

    Args:
      path: a file that `prediction_files.contents` reads.
      method: name of the calibrator, a key of CALIBRATORS.
      apply: another such file, or "".
      output: the file to write, or ""; its suffix names the format.

    Returns:
      What `recalibration.calibrate` returns, and `state`, the fitted calibrator in the
      form of calibrator.json. `judged` says which rows are compared: those of `apply`
      that have labels ("applied"), or else those of the file, each calibrated by a fit
      on other rows ("cross-fitted").

    Raises:
      UserError: a file cannot be read, the two have different classes, `output` is one
        of them, or there are too few labelled rows to compare on.
    """
    _check_output(path, apply, output)
    given = prediction_files.contents(path)
    target = prediction_files.contents(apply) if apply else None
    found = prediction_files.labelled(path, given)
    if found.dropped:
        logging.warning("%s: %d rows without a label are left out", path, found.dropped)
    if target is not None:
        _check_classes(path, given, apply, target)
    known = _labelled(given)
    state = calibrators.build(method).fit(known.logits, known.labels)
    out = {"method": method, **described(calibrators.Identity(), state)}
    out["state"] = json.loads(calibrators.to_json(state))
    out |= _judged(path, given, target, state)
    if target is not None:
        probs_NY = calibrators.apply(state, target.scores)
        prediction_files.write(output, target._replace(probs=probs_NY))
    return out


def _check_output(path: str, apply: str, output: str) -> None:
    """Check that there is something to apply to, and another file to write."""
    if bool(apply) != bool(output):
        has, lacks = ("apply", "output") if apply else ("output", "apply")
        raise UserError(
            f"--{has} is given without --{lacks}; expected both, the rows to calibrate "
            "and the file to write, or neither"
        )
    if not output:
        return
    prediction_files.check_suffix(output)
    if files.absolute(output) in map(files.absolute, (path, apply)):
        raise UserError(
            f"--output={output} is a file that this command reads; expected another "
            "file, so that the uncalibrated predictions are kept"
        )


def _check_classes(path: str, given: Contents, apply: str, target: Contents) -> None:
    """Check that two files have as many classes, with the same names if both have."""
    wanted, got = given.probs.shape[1], target.probs.shape[1]
    if got != wanted:
        raise UserError(
            f"{apply} has {got} classes and {path}, which the calibrator is fitted on, "
            f"has {wanted}; expected predictions of the same model"
        )
    if given.classes and target.classes and given.classes != target.classes:
        raise UserError(
            f"{apply} has the classes {', '.join(target.classes)} and {path} has "
            f"{', '.join(given.classes)}; expected the same classes in the same order"
        )


def _labelled(rows: Contents) -> Labelled:
    """Return the rows with a label, with scores that a calibrator takes."""
    keep_N = rows.labels >= 0
    soft = None if rows.soft is None else rows.soft[keep_N]
    return Labelled(rows.scores[keep_N], rows.labels[keep_N], soft)


def _judged(
    path: str, given: Contents, target: Contents | None, state: Any
) -> dict[str, Any]:
    """Compare on rows that the calibrator, or its fold's fit, has not seen."""
    if target is not None and np.any(target.labels >= 0):
        if not np.array_equal(given.scores, target.scores):
            rows = _labelled(target)
            after_NY = calibrators.apply(state, rows.logits)
            before_NY = target.probs[target.labels >= 0]
            return {"judged": "applied"} | compared(before_NY, after_NY, rows)
        logging.warning(
            "the calibrator is applied to the rows that it was fitted on: metrics of "
            "the output look better than those of new rows; the table is cross-fitted"
        )
    rows = _labelled(given)
    if (n := len(rows.labels)) < 2 * FOLDS:
        raise UserError(
            f"{path} has {n} labelled rows; expected at least {2 * FOLDS}, so that "
            "some can be judged by a fit on the others. Give more, or --apply with "
            "labels"
        )
    after_NY = calibrators.cross_fitted(state, rows.logits, rows.labels, FOLDS)
    before_NY = given.probs[given.labels >= 0]
    return {"judged": "cross-fitted"} | compared(before_NY, after_NY, rows)
