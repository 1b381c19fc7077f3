"""Evaluates a finished run with a kind of uncertainty that needs no training."""

from typing import Any, NamedTuple

from absl import logging

from hypelora_jax import files
from hypelora_jax.config.settings import UncertaintyConfig
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation, summary
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train.checkpoint import manifest
from hypelora_jax.train.session import data_of, load_corpus, with_data


class Derivation(NamedTuple):
    """A trained run, and the folder for its evaluation with another uncertainty."""

    source: Run
    record: dict[str, Any]  # config.json of the source
    target: Run
    fitted: Fitted  # the source's model under the new kind


def open_derivation(workdir: str, output: str, config: UncertaintyConfig) -> Derivation:
    """Open the model of a trained run under another kind of uncertainty.

    Nothing is written.

    Raises:
      UserError: the kind has to be trained, or there is no such run.
    """
    source, record = records.open_record(workdir)
    trained, target = evaluation.open_fitted(workdir), Run.open(output)
    fitted = evaluation.with_uncertainty(trained, config, target)
    return Derivation(source, record, target, fitted)


def finished(derivation: Derivation) -> dict[str, Any] | None:
    """Return the summary if the derivation is finished, else None.

    Raises:
      UserError: the target folder contains something else.
    """
    source, target = derivation.source, derivation.target
    record = records.read_record(target)
    if record is None:
        files.check_empty(target.path, "--output", but=(target.lock_file.name,))
        return None
    records.check_same(target.path, derivation.fitted.session.settings, record)
    if (theirs := record.get("derived_from")) != str(source.path):
        raise UserError(
            f"{target.path} has a run of {theirs or 'its own training'}, not of "
            f"{source.path}; choose another --output"
        )
    if not target.summary_file.exists():
        return None
    logging.info("%s is finished; nothing to do", target.path)
    return files.read_json(target.summary_file)


def fill(derivation: Derivation) -> dict[str, Any]:
    """Write the target except report and summary.json; return the summary's content.

    Raises:
      UserError: the data differs from the data that the run was trained on.
    """
    source, record, target, fitted = derivation
    settings = fitted.session.settings
    session = with_data(fitted.session, load_corpus(settings), record)
    records.check_data(source.path, data_of(session), record)
    new = {"config": records.as_dict(settings), "derived_from": str(source.path)}
    files.write_json(target.config_file, record | new)
    _copy(source, target, fitted.step)
    return _times(source) | summary.summary_of(fitted, session.datasets)


def _copy(source: Run, target: Run, step: int) -> None:
    """Copy a step's checkpoint and the curve; replace a partly copied checkpoint."""
    if target.checkpoints.exists():
        target.checkpoints.rmtree()
    begin, end = (run.checkpoints / str(step) for run in (source, target))
    for name, path in manifest.files(begin):
        (end / name).parent.mkdir(parents=True, exist_ok=True)
        path.copy(end / name)
    if source.metric_log.exists():
        source.metric_log.copy(target.metric_log, overwrite=True)


def _times(source: Run) -> dict[str, Any]:
    """Epochs and times of the source's training; {} for an imported run."""
    path = source.summary_file
    saved = files.read_json(path) if path.exists() else {}
    names = ("epochs", "seconds", "train_seconds")
    return {name: saved[name] for name in names if name in saved}
