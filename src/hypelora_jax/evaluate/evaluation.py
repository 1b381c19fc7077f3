"""Evaluates a trained run from its folder."""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import logging

from hypelora_jax import files
from hypelora_jax.calibration import calibrators
from hypelora_jax.config.settings import Settings, UncertaintyConfig
from hypelora_jax.data.batches import Dataset, warn_of_cuts
from hypelora_jax.data.conditions import file_sha256
from hypelora_jax.data.tables import digest
from hypelora_jax.evaluate import averaging, calibration_split, laplace
from hypelora_jax.evaluate.fitted import (
    Answer,
    Answerer,
    Fitted,
    corpus_of,
    tokenised,
)
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.run import calibrator as calibrator_file
from hypelora_jax.run import predictions, records
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes
from hypelora_jax.sharding.mesh import fitting_mesh
from hypelora_jax.train import ensembles, scoring
from hypelora_jax.train.checkpoint.checkpoints import Checkpoint
from hypelora_jax.train.conditioning import targets, task_conditions
from hypelora_jax.train.session import Session, open_session
from hypelora_jax.train.training import open_checkpoint
from hypelora_jax.types import Params


def open_fitted(workdir: str) -> Fitted:
    """Open the chosen model of a run folder.

    Raises:
      UserError: the run has no finished epoch, or its files do not fit together.
    """
    run, record = records.open_record(workdir)
    settings = _anywhere(records.settings_of(record))
    session = open_session(
        settings,
        records.task_of(record),
        record["model"]["revision"],
        fitting_mesh(settings.mesh),  # for the devices of now, not of the training
    )
    records.check_weights(run.path, session.base, record)
    task_set, tasks = task_conditions.read(run) or (None, None)
    session = session._replace(
        edges=tuple(record["buckets"]),
        total_steps=record["total_steps"],
        task_set=task_set,
        tasks=tasks,
        frozen=targets.read(run, session.frozen, session.mesh),
    )
    _warn_of_vectors(settings.condition.file, record)
    fitted = of_checkpoint(run, session, open_checkpoint(session, run))
    if settings.uncertainty.kind != "laplace":
        return fitted
    posterior = laplace.load_posterior(run, fitted.step)
    return fitted._replace(answer=averaging.answerer(fitted, posterior))


# Settings that decide the shapes of a run's parameters and the programs it uses.
_PROGRAM = (
    *("method", "model.dtype", "hyper.", "condition.", "blend.", "lora.", "head."),
    *("loss.objective", "loss.temperature", "uncertainty."),
)


def difference(record: dict[str, Any], like: Fitted, known: dict[str, Any]) -> str:
    """Return why a run cannot use the programs and the backbone of `like`, or "".

    Args:
      record: config.json of the run.
      like: a run that is open.
      known: its config.json.
    """
    mine, theirs = (records.settings_of(one) for one in (record, known))
    base, other = record["model"], known["model"]
    same = base["sha256"] == other["sha256"]
    if same and not base["sha256"]:  # weights that are drawn from the seed
        same = (base["name"], mine.seed) == (other["name"], theirs.seed)
    if not same:
        return f"it adapts {base['name']} with other weights than {other['name']} here"
    task, own = records.task_of(record), like.session.task
    if (task.kind, task.num_outputs) != (own.kind, own.num_outputs):
        return (
            f"it is a {task.kind} with {task.num_outputs} outputs, and not a "
            f"{own.kind} with {own.num_outputs}"
        )
    now, then = (records.flat(records.as_dict(one)) for one in (mine, theirs))
    for name in sorted(now.keys() | then.keys()):
        if name.startswith(_PROGRAM) and now.get(name) != then.get(name):
            return f"its config.{name} is {now.get(name)}, and not {then.get(name)}"
    return ""


def open_like(workdir: str, like: Fitted) -> Fitted:
    """Open a run with the programs and the backbone of another, without compiling.

    There must be no `difference` between them. Only shapes of the parameters of `like`
    are read, besides its backbone.

    Raises:
      UserError: the run has no finished epoch, or its files do not fit together.
    """
    run, record = records.open_record(workdir)
    settings, task = records.settings_of(record), records.task_of(record)
    shapes = like.session._replace(trainable=like.trainable, frozen=like.frozen)
    checkpoint = open_checkpoint(shapes, run)
    session = like.session._replace(
        settings=settings,
        task=task,
        edges=tuple(record["buckets"]),
        total_steps=record["total_steps"],
    )
    return of_checkpoint(run, session, checkpoint)


def _anywhere(settings: Settings) -> Settings:
    """Return settings that another device can compute with: a kernel is only preferred.

    What was trained with it on a GPU may predict on a CPU.
    """
    if settings.model.attention != "fused":
        return settings
    base = dataclasses.replace(settings.model, attention="auto")
    return dataclasses.replace(settings, model=base)


def _warn_of_vectors(file: str, record: dict[str, Any]) -> None:
    """Log a warning if the file of conditions is not the one of training."""
    trained = record.get("condition_file")
    now = file_sha256(file) if trained else ""
    if trained and now and now != trained:
        logging.warning(
            "%s has changed since the run was trained (its SHA-256 was %s then); its "
            "vectors are used as they are now",
            file,
            trained[:12],
        )


def of_checkpoint(run: Run, session: Session, checkpoint: Checkpoint) -> Fitted:
    """The model of a checkpoint, with the calibrator of its run if there is one."""
    trainable, step = checkpoint.state.params, checkpoint.step
    alpha = session.alpha_after(step)
    return _fitted(run, session, trainable, checkpoint.frozen, alpha, step)


def _fitted(
    run: Run,
    session: Session,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    step: int,
) -> Fitted:
    learned = float(ensembles.temperatures(session.settings, trainable)[0])
    calibrator = calibrator_file.read(run) or calibrators.Temperature(learned)
    own = (trainable, frozen, alpha, step)
    fitted = Fitted(run, session, session.forward, *own, calibrator, learned)
    return fitted._replace(answer=averaging.answerer(fitted))


def answerer(fitted: Fitted, edges: tuple[int, ...], batch_size: int) -> Answerer:
    """Return the prediction function for other bucket edges and another batch size."""
    settings = fitted.session.settings
    optim = dataclasses.replace(settings.optim, batch_size=batch_size, accumulate=1)
    settings = dataclasses.replace(settings, optim=optim)
    posterior = None
    if settings.uncertainty.kind == "laplace":
        posterior = laplace.load_posterior(fitted.run, fitted.step)
    session = fitted.session._replace(settings=settings, edges=edges)
    return averaging.answerer(fitted._replace(session=session), posterior)


def with_uncertainty(fitted: Fitted, config: UncertaintyConfig, run: Run) -> Fitted:
    """The same trained model with another kind of uncertainty, in another folder.

    Raises:
      UserError: the kind has to be trained.
    """
    session = averaging.with_kind(fitted.session, config)
    own = (fitted.trainable, fitted.frozen, fitted.alpha, fitted.step)
    return _fitted(run, session, *own)


def fit_posterior(fitted: Fitted, train: Dataset, held_out: Dataset) -> Fitted:
    """Fit and save the posterior of a Laplace run; return other kinds unchanged."""
    if fitted.session.settings.uncertainty.kind != "laplace":
        return fitted
    posterior = averaging.fit_laplace(fitted, train, held_out)
    if processes.is_main():
        laplace.save_posterior(fitted.run, posterior, fitted.step)
    return fitted._replace(answer=averaging.answerer(fitted, posterior))


def calibrated(
    fitted: Fitted,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    method: str = "temperature",
) -> Fitted:
    """Fit a calibrator on a split, write it to the run and return the new model.

    The method "identity" removes the calibrator, so that probabilities are as trained.
    A regression has no calibrator and is returned unchanged.
    """
    if not fitted.probabilistic:
        return fitted
    examples = calibration_split.of_classes(logits_NY, label_N)
    if method == "identity":
        state = calibrators.Temperature(fitted.uncalibrated)
    else:  # without labels the fitted temperature is 1
        found = examples or Labelled(logits_NY[:0], label_N[:0])
        state = calibrators.build(method).fit(found.logits, found.labels)
    if processes.is_main():
        calibrator_file.write(fitted.run, None if method == "identity" else state)
    return fitted._replace(calibrator=state, examples=examples)


def evaluate(
    workdir: str, split: str = "validation", description: int = 0
) -> dict[str, Any]:
    """Evaluate a split, write its files to DIR/eval/SPLIT and return its metrics.

    The keys are those of `calibration.metrics.compute_all` and the task's scores, for
    the probabilities that `predict` gives. `uncalibrated` has the same metrics without
    the post-hoc calibrator, and `conformal` the results of sets that were calibrated
    for 90 % coverage. With a number, from 1, only this `description` of each task is
    read, not their mean, and the files go to DIR/eval/SPLIT_description_NUMBER.

    Raises:
      UserError: there is no such run, split or description.
    """
    fitted = open_fitted(workdir)
    fitted = fitted._replace(examples=calibration_split.examples(fitted.run))
    settings, table = fitted.session.settings, corpus_of(fitted).splits[split]
    record = records.open_record(workdir)[1]
    if records.changed_splits({split: digest(table)}, record):
        logging.warning(
            "the texts or labels of %s have changed since the training", split
        )
    data = tokenised(fitted, table, description)
    warn_of_cuts([data], settings.data.max_length)
    split += f"_description_{description}" if description else ""
    return write_split(fitted, split, data, fitted.answer(data))


def write_split(
    fitted: Fitted, split: str, data: Dataset, answer: Answer
) -> dict[str, Any]:
    """Compute the metrics of a split and write its files to DIR/eval/SPLIT.

    With several processes, only the first one writes.
    """
    file, logits_NY = fitted.run.predictions_file(split), answer.logits
    if processes.is_main():
        predictions.write(
            file, logits_NY, data.label, data.ids, answer.members, data.soft
        )
    out = {"split": split, "step": fitted.step}
    session = fitted.session
    out |= averaging.about(session.settings.uncertainty, answer)
    out |= calibration_split.by_task(fitted, data, logits_NY)
    return write_metrics(fitted, split, logits_NY, data.label, out, data.soft)


def write_metrics(
    fitted: Fitted,
    split: str,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    out: dict[str, Any],
    soft_NY: np.ndarray | None = None,
) -> dict[str, Any]:
    """Add the metrics of a split to `out`, write them to metrics.json, return them."""
    objective = fitted.session.model.objective
    if not objective.probabilistic:
        out = out | scoring.judge(objective, logits_NY, label_N)
    else:
        own = (fitted.calibrator, fitted.uncalibrated)
        out = out | calibration_split.judge(
            objective, logits_NY, label_N, *own, soft_NY
        )
        if split != "calibration":
            judged = calibration_split.of_classes(logits_NY, label_N)
            known = (fitted.examples, judged, fitted.calibrator)
            out |= calibration_split.about_sets(*known)
    if processes.is_main():
        files.write_json(fitted.run.metrics_file(split), out)
    return out
