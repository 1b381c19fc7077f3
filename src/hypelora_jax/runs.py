"""A run from its settings to a finished folder: resume, train, evaluate, sum up."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from rich.console import Console

from hypelora_jax import files, trees
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.batches import Dataset, take
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import averaging, evaluation
from hypelora_jax.report import html, metric_tables, run_tables, series
from hypelora_jax.run import lock, records
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes
from hypelora_jax.train import ensembles, loop, scoring, session
from hypelora_jax.train.interruption import StopRequest

TRAIN_SAMPLE = 1000  # examples of train that its NLL is computed on


def train(settings: Settings, workdir: str, progress: bool = True) -> dict[str, Any]:
    """Train into a folder, or go on there; the summary that summary.json holds.

    With num_seeds > 1 the seeds seed, seed + 1, ... are trained one after the other in
    workdir/seed_0, seed_1, ..., and the summary has their means. Deep ensembles take
    the seeds of their members in turn, so that no two share a member.

    Raises:
      UserError: the folder holds another run, is in use, or cannot be written.
      KeyboardInterrupt, Preempted: asked to stop; the same call goes on.
    """
    settings = records.located(settings)
    if not processes.is_main():
        logging.set_verbosity(logging.WARNING)
    path = processes.together(lambda: Run.create(workdir).path)
    processes.check_shared(path)
    with _held(path), StopRequest(at_once=True):  # the loop itself saves first
        return _all_seeds(settings, workdir, path, progress)


@contextlib.contextmanager
def _held(path: epath.Path) -> Iterator[None]:
    """The folder's lock, held by process 0 for all."""
    with contextlib.ExitStack() as stack:
        hold = lock.hold(Run(path)) if processes.is_main() else contextlib.nullcontext()
        processes.together(lambda: stack.enter_context(hold))
        yield


def _all_seeds(
    settings: Settings, workdir: str, path: epath.Path, progress: bool
) -> dict[str, Any]:
    if settings.num_seeds == 1:
        if Run(path).seeds_file.exists():
            raise UserError(
                f"{workdir} holds a run of several seeds; choose another --workdir, or "
                "the num_seeds it was begun with"
            )
        return _one(settings, path, progress)
    _claim_for_seeds(settings, path)
    runs = []
    for i in range(settings.num_seeds):
        seed = settings.seed + i * ensembles.seeds(settings)
        own = dataclasses.replace(settings, seed=seed, num_seeds=1)
        at = str(Run(path).seed(i).path)
        seed_path = processes.together(lambda at=at: Run.create(at).path)
        with _held(seed_path):
            runs.append(_one(own, seed_path, progress))
    summary = {"seeds": runs, "mean": _over(runs, np.mean), "std": _over(runs, _std)}
    if processes.is_main():
        files.write_json(Run(path).summary_file, summary)
        report = Run(path).report_file
        html.write_report([series.load(path)], report, replicas=0)
    processes.barrier("all seeds are done")
    return summary


def _claim_for_seeds(settings: Settings, path: epath.Path) -> None:
    """Record in seeds.json what the folder is for; refuse another run."""
    if Run(path).config_file.exists():
        raise UserError(
            f"{path} holds a run of one seed; choose another --workdir for "
            f"num_seeds={settings.num_seeds}"
        )
    record = Run(path).seeds_file
    if record.exists():
        records.check_same(path, settings, files.read_json(record))
    processes.barrier("seeds.json is read")
    if processes.is_main() and not record.exists():
        files.write_json(record, {"config": records.as_dict(settings)})


def _std(values: list[float]) -> float:
    return float(np.std(values, ddof=1))


def _over(runs: list[dict[str, Any]], how) -> dict[str, dict[str, float]]:
    """Metrics of each split over seeds."""
    first = runs[0]["metrics"]
    return {
        split: {
            name: float(how([run["metrics"][split][name] for run in runs]))
            for name, value in held.items()
            if isinstance(value, int | float)
        }
        for split, held in first.items()
    }


def _begun(settings: Settings, path: epath.Path) -> dict[str, Any] | None:
    """config.json of the run to go on with, None where there is none.

    Raises:
      UserError: the folder holds another run.
    """
    record = records.read_record(Run(path))
    saved = Run(path).checkpoints
    begun = saved.exists() and any(saved.iterdir())
    if record is not None and not begun:
        record = None  # stopped before its first checkpoint: nothing to go on with
    if record is not None:
        records.check_same(path, settings, record)
    elif begun and not Run(path).config_file.exists():
        raise UserError(
            f"{path} holds checkpoints and no config.json that says of what; choose "
            "another --workdir, or delete that folder"
        )
    return record


def _prepare(
    settings: Settings, path: epath.Path, record: dict[str, Any] | None
) -> tuple[session.Workbench, session.Plan]:
    """Model and data of a run, the same as when it was begun."""
    corpus = session.load_corpus(settings)
    revision = record["model"]["revision"] if record else None
    bench = session.workbench(settings, corpus.task, revision)
    plan = session.plan(bench, corpus)
    averaging.check(bench, plan.datasets["calibration"].label)
    if record is not None:
        records.check_weights(path, bench.base, record)
        own = (bench.task, plan.edges, plan.total_steps)
        records.check_data(path, *own, record)
    return bench, plan


def _one(settings: Settings, path: epath.Path, progress: bool) -> dict[str, Any]:
    record, done = processes.together(lambda: _begun(settings, path)), None
    finished = Run(path).summary_file
    if record is not None and finished.exists():
        logging.info("%s is finished; nothing to do", path)
        done = files.read_json(finished)
    processes.barrier("the folder is read")  # before process 0 writes in it
    if done is not None:
        return done
    started = time.monotonic()
    bench, plan = processes.together(lambda: _prepare(settings, path, record))
    if record is None and processes.is_main():
        own = (settings, bench.task, bench.base, bench.mesh, plan.edges)
        record = records.record(*own, plan.total_steps)
        files.write_json(Run(path).config_file, record)
    _print(run_tables.opening(bench, plan))
    begun_training = time.monotonic()
    trained = loop.train(bench, plan, path, progress)
    train_seconds = time.monotonic() - begun_training
    own = (trained.trainable, trained.frozen, trained.alpha, trained.step)
    run = evaluation.fitted(path, bench, *own, plan.edges)
    judged = summary_of(run, plan.datasets)
    times = {
        "epochs": trained.epochs,
        "seconds": round(time.monotonic() - started, 1),
        "train_seconds": round(train_seconds, 1),  # of the last start only
    }
    return close(path, judged | times)


def close(path: epath.Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Write a finished run's report and summary.json, and print its table.

    Of several processes the first writes.
    """
    if processes.is_main():
        report = Run(path).report_file
        html.write_report([series.load(path)], report, replicas=0)
        files.write_json(Run(path).summary_file, summary)
    processes.barrier("the run is written")
    _print(run_tables.closing(summary))
    return summary


def summary_of(run: evaluation.Fitted, datasets: dict[str, Dataset]) -> dict[str, Any]:
    """Calibrate a chosen model and evaluate every split: what there is to say of it.

    The files of the splits are written to the run's folder.
    """
    run, judged = judge(run, datasets)
    settings = run.bench.settings
    unit = run.bench.model.objective.unit
    losses = {s: m.get("uncalibrated", m).get(unit) for s, m in judged.items()}
    losses["train"] = _train_loss(run, datasets["train"], unit)
    one = ensembles.member(settings, run.trainable, run.frozen, 0)
    return {
        "method": settings.method,
        "step": run.step,
        "trained_parameters": trees.count(run.trainable),
        "temperature": judged["calibration"].get("temperature"),
        "selection_metric": unit,
        unit: {s: x for s, x in losses.items() if x is not None},
        "deltas": run_tables.deltas(run.bench, *one, run.alpha),
        "metrics": {s: m for s, m in judged.items() if "n" in m},
    }


def judge(
    run: evaluation.Fitted, datasets: dict[str, Dataset]
) -> tuple[evaluation.Fitted, dict[str, dict[str, Any]]]:
    """(calibrated run, metrics of every split but train), written to the run's folder.

    What is fitted after training is fitted here, on train and calibration only.
    """
    run = evaluation.fit_posterior(run, datasets["train"], datasets["calibration"])
    data = {name: part for name, part in datasets.items() if name != "train"}
    answers = {split: run.answer(part) for split, part in data.items()}
    run = evaluation.calibrated(
        run, answers["calibration"].logits, data["calibration"].label
    )
    return run, {
        split: evaluation.write_split(run, split, part, answers[split])
        for split, part in data.items()
    }


def _train_loss(run: evaluation.Fitted, train: Dataset, unit: str) -> float:
    """NLL or squared error on the first examples of train, uncalibrated."""
    part = take(train, np.arange(min(TRAIN_SAMPLE, len(train.ids))))
    logits_NY = evaluation.logits_of(run, part)
    objective = run.bench.model.objective
    judged = scoring.judge(objective, logits_NY, part.label, run.uncalibrated)
    return judged[unit]


def _print(table: metric_tables.Table) -> None:
    if processes.is_main():
        Console(file=sys.stderr).print(metric_tables.to_rich(table))
