"""Evaluation of a trained run, from its folder."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.calibration import calibrators
from hypelora_jax.config.settings import UncertaintyConfig
from hypelora_jax.data.batches import Dataset, dataset, warn_of_cuts
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import averaging, calibration_split
from hypelora_jax.report import reliability
from hypelora_jax.run import calibrator as calibrator_file
from hypelora_jax.run import predictions, records
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes
from hypelora_jax.sharding.mesh import fitting_mesh
from hypelora_jax.train import ensembles, restored, scoring, session
from hypelora_jax.train.session import Workbench
from hypelora_jax.types import Params


class Fitted(NamedTuple):
    """A model ready to use: parameters chosen, calibrator if there is one."""

    workdir: epath.Path
    bench: Workbench
    forward: scoring.Forward
    trainable: Params
    frozen: Params
    alpha: jax.Array
    step: int
    edges: tuple[int, ...]
    calibrator: Any  # state: what makes probabilities of raw logits
    uncalibrated: float  # what divides logits without a post-hoc calibrator
    held: (
        calibration_split.Held | None
    )  # what calibrators and sets are fitted on, if known
    answer: averaging.Answerer  # predictions by uncertainty.kind


def open_run(workdir: str) -> Fitted:
    """The chosen model of a run folder.

    Raises:
      UserError: no finished epoch there, or files that do not fit together.
    """
    (_, record), path = records.open_record(workdir), Run.open(workdir).path
    settings = records.settings_of(record)
    bench = session.workbench(
        settings,
        records.task_of(record),
        record["model"]["revision"],
        fitting_mesh(settings.mesh),  # for the devices there are, not those of training
    )
    records.check_weights(path, bench.base, record)
    state, frozen, alpha, step = restored.chosen(bench, path, record["total_steps"])
    edges = tuple(record["buckets"])
    run = fitted(path, bench, state.params, frozen, alpha, step, edges)
    if settings.uncertainty.kind != "laplace":
        return run
    posterior = averaging.load_posterior(path, step)
    return run._replace(answer=averaging.answerer(chosen(run), posterior))


def fitted(
    path: epath.Path,
    bench: Workbench,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    step: int,
    edges: tuple[int, ...],
) -> Fitted:
    """A model with the calibrator its folder holds, if any."""
    learned = float(ensembles.temperatures(bench.settings, trainable)[0])
    calibrator = calibrator_file.read(Run(path)) or calibrators.Temperature(learned)
    forward = scoring.forward(bench.model, bench.mesh)
    plain = averaging.Chosen(bench, forward, trainable, frozen, alpha, edges)
    return Fitted(
        path,
        bench,
        forward,
        trainable,
        frozen,
        alpha,
        step,
        edges,
        calibrator,
        learned,
        held=None,
        answer=averaging.answerer(plain),
    )


def chosen(run: Fitted) -> averaging.Chosen:
    """The model alone, without folder and calibrator."""
    return averaging.Chosen(*(getattr(run, name) for name in averaging.Chosen._fields))


def answerer(
    run: Fitted, edges: tuple[int, ...], batch_size: int
) -> averaging.Answerer:
    """What the run predicts, in batches of other shapes: T of the edges, these rows."""
    settings = run.bench.settings
    optim = dataclasses.replace(settings.optim, batch_size=batch_size, accumulate=1)
    settings = dataclasses.replace(settings, optim=optim)
    posterior = None
    if settings.uncertainty.kind == "laplace":
        posterior = averaging.load_posterior(run.workdir, run.step)
    bench = run.bench._replace(settings=settings)
    return averaging.answerer(chosen(run)._replace(bench=bench, edges=edges), posterior)


def with_uncertainty(
    run: Fitted, config: UncertaintyConfig, workdir: epath.Path
) -> Fitted:
    """The same trained model under another kind of uncertainty, in another folder.

    Raises:
      UserError: a kind that has to be trained.
    """
    bench = averaging.chosen_afterwards(run.bench, config)
    own = (run.trainable, run.frozen, run.alpha, run.step, run.edges)
    return fitted(workdir, bench, *own)


def fit_posterior(run: Fitted, train: Dataset, held: Dataset) -> Fitted:
    """The run with a Laplace posterior fitted and saved; other kinds as they are."""
    if run.bench.settings.uncertainty.kind != "laplace":
        return run
    posterior = averaging.fit_laplace(chosen(run), train, held)
    if processes.is_main():
        averaging.save_posterior(run.workdir, posterior, run.step)
    return run._replace(answer=averaging.answerer(chosen(run), posterior))


def tokenised(run: Fitted, table: Table) -> Dataset:
    """A table as the run's model reads it."""
    return dataset(table, run.bench.tokenizer, run.bench.settings.data.max_length)


def logits_of(run: Fitted, data: Dataset) -> np.ndarray:
    """Raw logits (N, Y) of a tokenised table, averaged by uncertainty.kind."""
    return run.answer(data).logits


def calibrated(
    run: Fitted,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    method: str = "temperature",
) -> Fitted:
    """The run with a calibrator fitted on a split, written to its folder.

    The method "identity" takes the calibrator away: probabilities are as trained. A
    regression has no calibrator and comes back as it is.
    """
    if not run.bench.model.objective.probabilistic:
        return run
    held = calibration_split.held(logits_NY, label_N)
    if held is None:  # no label: the temperature is 1
        held = calibration_split.Held(logits_NY[:0], label_N[:0])
    identity = method == "identity"
    if identity:
        state = calibrators.Temperature(run.uncalibrated)
    else:
        state = calibrators.build(method).fit(held.logits, held.labels)
    if processes.is_main():
        calibrator_file.write(Run(run.workdir), None if identity else state)
    return run._replace(calibrator=state, held=held if len(held.labels) else None)


def evaluate(workdir: str, split: str = "validation") -> dict[str, Any]:
    """Metrics of a split; also written to DIR/eval/SPLIT.

    The keys are those of `calibration.metrics.compute_all` and the task's scores, for
    the probabilities that `predict` gives; `uncalibrated` holds them without the
    post-hoc calibrator, `conformal` how sets calibrated for 90 % coverage did.

    Raises:
      UserError: no such run or split.
    """
    run = open_run(workdir)
    run = run._replace(held=calibration_split.examples(Run(run.workdir)))
    corpus = session.load_corpus(run.bench.settings)
    table = corpus.splits[split]
    if corpus.task.labels != run.bench.task.labels:
        raise UserError(
            f"the data now has classes {corpus.task.labels}, the run was trained for "
            f"{run.bench.task.labels}; restore the data or train again"
        )
    data = tokenised(run, table)
    warn_of_cuts([data], run.bench.settings.data.max_length)
    return write_split(run, split, data, run.answer(data))


def write_split(
    run: Fitted, split: str, data: Dataset, answer: averaging.Answer
) -> dict[str, Any]:
    """Metrics of a split from its predictions, and its files in DIR/eval/SPLIT.

    Of several processes the first writes the files.
    """
    file, logits_NY = Run(run.workdir).predictions_file(split), answer.logits
    if processes.is_main():
        predictions.write(
            file, logits_NY, data.label, data.ids, answer.members, data.soft
        )
    out = {"split": split, "step": run.step}
    out |= averaging.about(run.bench.settings.uncertainty, answer)
    return write_metrics(run, split, logits_NY, data.label, out, data.soft)


def write_metrics(
    run: Fitted,
    split: str,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    out: dict[str, Any],
    soft_NY: np.ndarray | None = None,
) -> dict[str, Any]:
    """`out` with the metrics of a split, written to metrics.json; and its diagram."""
    objective = run.bench.model.objective
    if not objective.probabilistic:
        out = out | scoring.judge(objective, logits_NY, label_N)
    else:
        own = (run.calibrator, run.uncalibrated)
        out = out | calibration_split.judge(
            objective, logits_NY, label_N, *own, soft_NY
        )
        if split != "calibration":
            judged = calibration_split.held(logits_NY, label_N)
            out |= calibration_split.about_sets(run.held, judged, run.calibrator)
    if processes.is_main():
        files.write_json(Run(run.workdir).metrics_file(split), out)
        reliability.write_diagram(Run(run.workdir), split)
    return out
