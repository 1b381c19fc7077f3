"""Calibrators and conformal sets, which are fitted on the calibration split.

The threshold of sets is not saved: it is computed from the saved predictions of the
split whenever it is needed.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration import calibrators, conformal
from hypelora_jax.calibration.conformal import Threshold
from hypelora_jax.data.batches import Dataset
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.objectives import judging
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.run import predictions
from hypelora_jax.run.paths import Run
from hypelora_jax.train import scoring
from hypelora_jax.train.conditioning import recovery
from hypelora_jax.train.conditioning.nearness import nearest_of
from hypelora_jax.types import Objective

COVERAGE = 0.9  # wanted coverage of the sets in metrics.json


class SetMaker(NamedTuple):
    """The sets that `predict --coverage` asks for."""

    coverage: float
    sets: str = "thr"
    by_class: bool = False


def of_classes(
    logits_NY: np.ndarray, label_N: np.ndarray, soft_NY: np.ndarray | None = None
) -> Labelled | None:
    """The examples whose label is a class; None without any, or for a regression."""
    if not np.issubdtype(label_N.dtype, np.integer) or logits_NY.shape[1] < 2:
        return None
    found = judging.update(judging.start(), logits_NY, label_N, soft_NY)
    return found if len(found.labels) else None


def examples(run: Run, split: str = "calibration") -> Labelled | None:
    """The run's labelled predictions of a split, or None if there are none."""
    file = run.predictions_file(split)
    if not file.exists():
        return None
    found = predictions.read(file)
    return of_classes(found.logits, found.labels, found.soft)


def judge(
    objective: Objective,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    state: Any,
    t: float,
    soft_NY: np.ndarray | None = None,
) -> dict[str, Any]:
    """Metrics of a classification split, as metrics.json has them.

    They are the metrics of the calibrated probabilities; `uncalibrated` has those at
    the training temperature t. Both include the distances to `soft_NY` if the raters'
    shares are given. A temperature is recorded as `temperature`; for any other
    calibrator, `calibrator` gives its kind.
    """
    judge = objective.judge
    totals = judge.update(judge.start(), logits_NY, label_N, soft_NY)
    out = judge.result(totals, partial(calibrators.apply, state))
    if isinstance(state, calibrators.Temperature):
        out["temperature"] = state.temperature
    else:
        out["calibrator"] = calibrators.kind(state)
    raw = scoring.judge(objective, logits_NY, label_N, t, soft_NY)
    return out | {"uncalibrated": raw | {"temperature": t}}


def by_task(fitted: Fitted, data: Dataset, logits_NY: np.ndarray) -> dict[str, Any]:
    """`{"tasks": {name: metrics}}`, calibrated, of a split of a set of tasks.

    A run that learns adapters has their R^2 and cosine besides. Where the conditions
    are descriptions, a held-out task also has `nearest`, the training task with the
    nearest description, and the `distance` of the two.
    """
    session, objective = fitted.session, fitted.session.model.objective
    tasks = session.task_set
    if tasks is None or data.task is None:
        return {}
    own = (fitted.trainable, fitted.frozen, fitted.alpha)
    out = recovery.of_split(session, *own, data.task)
    if not objective.probabilistic:
        return out
    calibrated = partial(calibrators.apply, fitted.calibrator)
    own_N = (data.label, data.task)
    found = scoring.by_task(objective, logits_NY, *own_N, calibrated)
    if data.tasks is not None and "condition" in data.tasks.choices:
        parts = session.settings.condition.parts
        nearest = nearest_of(tasks, data.tasks.choices["condition"], parts)
        for k in found:
            if tasks.held_out[k]:
                found[k] |= nearest(data.tasks.conditions["condition"][k])._asdict()
    return {**out, "tasks": {tasks.names[k]: x for k, x in found.items()}}


def about_sets(
    calibration: Labelled | None, judged: Labelled | None, state: Any
) -> dict[str, Any]:
    """`{"conformal": summary}` at COVERAGE; {} if one of the splits has no examples."""
    if calibration is None or judged is None:
        return {}
    summary = conformal.summary(
        calibrators.cross_fitted(state, *calibration[:2]),
        calibration.labels,
        calibrators.apply(state, judged.logits),
        judged.labels,
        COVERAGE,
    )
    return {"conformal": summary}


def threshold(run: Run, task: Task, state: Any, wanted: SetMaker) -> Threshold:
    """Compute the threshold of the wanted sets from the calibration split.

    Raises:
      UserError: the run is a regression, that split has no saved predictions, or the
        coverage is not between 0 and 1.
    """
    if not task.labels:
        raise UserError(
            f"coverage={wanted.coverage:g} asks for sets of classes, but this run "
            "predicts a number; leave it out"
        )
    if not 0 < wanted.coverage < 1:
        raise UserError(
            f"coverage is {wanted.coverage:g}; expected above 0 and below 1"
        )
    calibration = examples(run)
    if calibration is None:
        raise UserError(
            f"{run.path} has no predictions of the calibration split, on which sets "
            f"are calibrated; run hypelora evaluate --workdir={run.path} "
            "--split=calibration first"
        )
    probs_NY = calibrators.cross_fitted(state, *calibration[:2])
    return conformal.fit(probs_NY, calibration.labels, *wanted)
