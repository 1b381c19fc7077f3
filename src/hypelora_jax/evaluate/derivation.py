"""A finished run judged by a kind of uncertainty that needs no training of its own."""

import dataclasses
from typing import Any

from absl import logging

from hypelora_jax import files, runs
from hypelora_jax.config.settings import Settings, UncertaintyConfig
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.run import lock, records
from hypelora_jax.run.paths import Run
from hypelora_jax.train import session
from hypelora_jax.train.checkpoint import manifest


def derive(workdir: str, output: str, config: UncertaintyConfig) -> dict[str, Any]:
    """Make a second run folder of a trained model, under another kind of uncertainty.

    The folder holds the chosen checkpoint and the curve of the first and is whole in
    itself: `evaluate`, `predict`, `calibrate` and `report` take it like any other, and
    it can stand beside the first one in a report. What the kind fits (the posterior of
    `laplace`) and the calibrator are fitted here, on train and calibration.

    Args:
      workdir: a trained run; it is only read.
      output: a folder that does not exist or is empty, or one begun by the same call,
        which then goes on; a finished one is left as it is.

    Returns:
      what summary.json of the new folder holds, as `runs.train` gives it.

    Raises:
      UserError: a kind that has to be trained, no such run, or data or weights other
        than it was trained on.
    """
    source, record = records.open_record(workdir)
    run = evaluation.open_run(workdir)
    settings = dataclasses.replace(run.bench.settings, uncertainty=config)
    target = Run.open(output)
    run = evaluation.with_uncertainty(run, config, target.path)
    target = Run.create(output)
    with lock.hold(target):
        if finished := _begun(target, source, settings):
            return finished
        corpus = session.load_corpus(settings)
        plan = session.plan(run.bench, corpus)
        own = (run.bench.task, plan.edges, plan.total_steps)
        records.check_data(source.path, *own, record)
        config_of = {
            "config": records.as_dict(settings),
            "derived_from": str(source.path),
        }
        files.write_json(target.config_file, record | config_of)
        _copy(source, target, run.step)
        judged = runs.summary_of(run, plan.datasets)
        return runs.close(target.path, _times(source) | judged)


def _begun(target: Run, source: Run, settings: Settings) -> dict[str, Any] | None:
    """The summary, if all is done already; refuses a folder of something else."""
    record = records.read_record(target)
    if record is None:
        files.check_empty(target.path, "--output", but=(target.lock_file.name,))
        return None
    records.check_same(target.path, settings, record)
    if (theirs := record.get("derived_from")) != str(source.path):
        raise UserError(
            f"{target.path} holds a run of {theirs or 'its own training'}, not of "
            f"{source.path}; choose another --output"
        )
    if not target.summary_file.exists():
        return None
    logging.info("%s is finished; nothing to do", target.path)
    return files.read_json(target.summary_file)


def _copy(source: Run, target: Run, step: int) -> None:
    """The checkpoint of a step and the curve; a half copied checkpoint is replaced."""
    if target.checkpoints.exists():
        target.checkpoints.rmtree()
    begin, end = (run.checkpoints / str(step) for run in (source, target))
    for name, path in manifest.files(begin):
        (end / name).parent.mkdir(parents=True, exist_ok=True)
        path.copy(end / name)
    if source.metric_log.exists():
        source.metric_log.copy(target.metric_log, overwrite=True)


def _times(source: Run) -> dict[str, Any]:
    """What the first run's summary says of its training; {} for an imported one."""
    path = source.summary_file
    held = files.read_json(path) if path.exists() else {}
    names = ("epochs", "seconds", "train_seconds")
    return {name: held[name] for name in names if name in held}
