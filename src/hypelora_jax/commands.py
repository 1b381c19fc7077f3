"""What each command does, once its flags are read: call the library, write results.

Imports stand in the functions, so that `--help` and a wrong flag answer at once. A
command that checks something returns False for "no".
"""

import json
import sys

from hypelora_jax import files
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError


def train(config: Settings | None, workdir: str) -> None:
    """Train a run, or go on with one that was stopped or imported."""
    from hypelora_jax import runs
    from hypelora_jax.run import records
    from hypelora_jax.run.paths import Run

    files.keep_compiled()
    if config is None:
        record = records.read_record(Run.open(workdir))
        if record is None:
            raise UserError(
                f"the following argument is required: --config ({workdir} holds no "
                "run to go on with); see hypelora train --help"
            )
        config = records.settings_of(record)
    runs.train(config, workdir)


def evaluate(workdir: str, split: str) -> None:
    """Evaluate a run on a split: a table, then one JSON object on the last line."""
    from rich.console import Console

    from hypelora_jax.evaluate import evaluation
    from hypelora_jax.report import metric_tables as tables

    files.keep_compiled()
    result = evaluation.evaluate(workdir, split)
    raw = result.get("uncalibrated")
    rows = {"uncalibrated": raw, "calibrated": result} if raw else {split: result}
    table = tables.of_metrics(f"{workdir}, {split}", rows)
    Console(file=sys.stdout).print(tables.to_rich(table))
    print(json.dumps(result))


def calibrate(workdir: str, method: str) -> None:
    """Fit a calibrator on the calibration split; before and after on validation."""
    from rich.console import Console

    from hypelora_jax.evaluate import recalibration
    from hypelora_jax.report import metric_tables as tables

    files.keep_compiled()
    result = recalibration.calibrate(workdir, method)
    Console(file=sys.stdout).print(tables.to_rich(recalibration.table(result)))
    print(json.dumps(result))


def uncertainty(
    workdir: str,
    kind: str,
    samples: int,
    dropout: float | None,
    link: str,
    output: str,
) -> None:
    """Judge a trained run by averaged predictions, in a run folder of its own."""
    from hypelora_jax.config.settings import UncertaintyConfig
    from hypelora_jax.evaluate import derivation

    files.keep_compiled()
    how = UncertaintyConfig(kind, samples, dropout, link)
    print(json.dumps(derivation.derive(workdir, output, how)["metrics"]))


def predict(
    workdir: str,
    input: str,
    output: str,
    format: str,
    on_error: str,
    text: str,
    text_b: str,
    abstain: float | None,
    coverage: float | None,
    sets: str | None,
    by_class: bool,
) -> None:
    """Add label, confidence and probabilities to rows, and sets if asked to."""
    _check_sets(coverage, sets, by_class)
    from hypelora_jax.inference import predictor, stream

    files.keep_compiled()
    rows = stream.Stream(input, output, format, on_error == "skip", text, text_b)
    stream.formats(rows)  # report a wrong format before the model is loaded
    model = predictor.load(workdir, coverage, sets or "thr", by_class, abstain)
    stream.predict(model, rows)


def _check_sets(coverage: float | None, sets: str | None, by_class: bool) -> None:
    """Refuse a kind of sets where none are asked for."""
    if coverage is None and (sets or by_class):
        flag = f"--sets={sets}" if sets else "--by_class"
        raise UserError(
            f"{flag} says which sets, but none are asked for; wanted --coverage=0.9 "
            f"beside it, or no {flag}"
        )


def serve(
    workdirs: list[str],
    host: str,
    port: int,
    max_batch: int,
    window_ms: float,
    max_waiting: int,
    max_body: int,
    max_texts: int,
    max_chars: int,
    rate: float,
    abstain: float | None,
    coverage: float | None,
    sets: str | None,
    by_class: bool,
) -> None:
    """Answer predictions over HTTP, of one run or of several behind one backbone."""
    _check_sets(coverage, sets, by_class)
    try:
        from hypelora_jax.serve import server
        from hypelora_jax.serve.limits import Limits
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("hypelora_jax"):
            raise
        raise UserError(
            f"serve needs {e.name}, which is not installed; wanted the extra: "
            "pip install 'hypelora-jax[serve]'"
        ) from e

    files.keep_compiled()
    batching = server.Batching(max_batch, window_ms / 1000, max_waiting)
    limits = Limits(max_body, max_texts, max_chars, rate)
    how = {"coverage": coverage, "sets": sets or "thr", "by_class": by_class}
    server.serve(workdirs, host, port, batching, limits, abstain=abstain, **how)


def metrics(
    predictions: str, replicas: int, level: float | None, bins: int, seed: int
) -> None:
    """Print the metrics of a file of predictions as one JSON object."""
    if level is not None and not replicas:
        raise UserError(
            f"--level={level:g} is of intervals, and without replicas there are none; "
            "wanted --replicas=1000 beside it, or no --level"
        )
    from hypelora_jax.run.prediction_files import metrics_of_file

    if replicas:
        files.keep_compiled()
    how = {"replicas": replicas, "level": 0.95 if level is None else level}
    print(json.dumps(metrics_of_file(predictions, bins, seed=seed, **how)))


def report(
    workdirs: list[str], output: str, split: str, replicas: int, formats: str
) -> None:
    """Write one HTML file about one or more runs, tables and figures beside it."""
    from hypelora_jax.report import html, series

    files.keep_compiled()
    rows = series.load_all(workdirs)
    html.write_report(rows, output, split, replicas, formats.split(","))


def export(workdir: str, format: str, output: str, calibrated: bool, only: str) -> None:
    """Write a run as a peft adapter or a merged model, with tokenizer and card."""
    from hypelora_jax.exchange import exports

    files.keep_compiled()
    names = [name for name in only.split(",") if name]
    for path in exports.export(workdir, output, format, calibrated, names):
        print(path)


def import_adapter(
    adapter: str, model: str, workdir: str, config: Settings | None, factors: str
) -> None:
    """Make a run folder of a peft adapter, to use, calibrate, train on or export."""
    from hypelora_jax.exchange import imports

    files.keep_compiled()
    print(imports.import_adapter(adapter, workdir, model, config, factors))


def prepare(config: Settings) -> None:
    """Download, prepare and tokenise all that a run needs, then exit."""
    from hypelora_jax import prepare

    prepare.prepare(config)


def plan(config: Settings, topology: str) -> bool:
    """Compile the training step for a TPU slice nobody has to own: does it fit?"""
    from rich.console import Console

    from hypelora_jax.plan import changes, estimate_table
    from hypelora_jax.plan.estimate import estimate
    from hypelora_jax.plan.topology import topology as slice_of
    from hypelora_jax.report import metric_tables as tables

    where = slice_of(topology)
    found = estimate(config, where)
    better = [] if found.fits else changes.changes(config, where, found)
    Console(file=sys.stderr).print(tables.to_rich(estimate_table.table(found, where)))
    for line in estimate_table.advice(found, better):
        print(line, file=sys.stderr)
    print(json.dumps(estimate_table.as_dict(found, where, better)))
    return found.fits


def doctor() -> bool:
    """Say what is installed, what is wrong, and what to do about it."""
    from hypelora_jax import doctor

    text, ok = doctor.report()
    print(text)
    return ok
