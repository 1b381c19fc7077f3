"""A finished run judged by a kind of uncertainty that needs no training of its own."""

from typing import Any, NamedTuple

from absl import logging
from etils import epath

from hypelora_jax import files
from hypelora_jax.config.settings import UncertaintyConfig
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation, summary
from hypelora_jax.run import lock, records
from hypelora_jax.train import session
from hypelora_jax.train.checkpoint import manifest


class Derivation(NamedTuple):
    """A trained run and the folder it is judged in anew."""

    source: epath.Path
    record: dict[str, Any]  # of the source
    target: epath.Path
    run: evaluation.Fitted  # the source's model under the new kind


def open_derivation(workdir: str, output: str, config: UncertaintyConfig) -> Derivation:
    """The model of a trained run under another kind of uncertainty; nothing is written.

    Raises:
      UserError: a kind that has to be trained, or no such run.
    """
    source, record = records.wanted_record(workdir)
    run, target = evaluation.open_run(workdir), records.absolute(output)
    run = evaluation.with_uncertainty(run, config, target)
    return Derivation(source, record, target, run)


def fill(derived: Derivation) -> dict[str, Any]:
    """Write all of the folder but report and summary.json, whose content it returns.

    Raises:
      UserError: the data is not what the run was trained on.
    """
    source, record, target, run = derived
    settings = run.bench.settings
    corpus = session.load_corpus(settings)
    plan = session.plan(run.bench, corpus)
    records.check_data(source, run.bench, plan, record)
    config = records.as_dict(settings)
    new = record | {"config": config, "derived_from": str(source)}
    files.write_json(target / "config.json", new)
    _copy(source, target, run.step)
    return _times(source) | summary.summary_of(run, plan.datasets)


def finished(derived: Derivation) -> dict[str, Any] | None:
    """The summary, if all is done already; refuses a folder of something else."""
    source, target = derived.source, derived.target
    record = records.saved_record(target)
    if record is None:
        if any(path.name != lock.NAME for path in target.iterdir()):
            raise UserError(
                f"{target} is not empty; nothing there is overwritten: choose another "
                "--output"
            )
        return None
    records.check_same(target, derived.run.bench.settings, record)
    if (theirs := record.get("derived_from")) != str(source):
        raise UserError(
            f"{target} holds a run of {theirs or 'its own training'}, not of {source}; "
            "choose another --output"
        )
    if not (target / "summary.json").exists():
        return None
    logging.info("%s is finished; nothing to do", target)
    return records.read_json(target / "summary.json")


def _copy(source: epath.Path, target: epath.Path, step: int) -> None:
    """The checkpoint of a step and the curve; a half copied checkpoint is replaced."""
    if (target / "checkpoints").exists():
        (target / "checkpoints").rmtree()
    begin, end = (where / "checkpoints" / str(step) for where in (source, target))
    for name, path in manifest.files(begin):
        (end / name).parent.mkdir(parents=True, exist_ok=True)
        path.copy(end / name)
    if (source / "metrics.jsonl").exists():
        (source / "metrics.jsonl").copy(target / "metrics.jsonl", overwrite=True)


def _times(source: epath.Path) -> dict[str, Any]:
    """What the first run's summary says of its training; {} for an imported one."""
    path = source / "summary.json"
    held = records.read_json(path) if path.exists() else {}
    names = ("epochs", "seconds", "train_seconds")
    return {name: held[name] for name in names if name in held}
