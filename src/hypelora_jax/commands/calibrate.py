"""Fit a calibrator, for a run or on a file of predictions, and compare both."""

import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.errors import UserError

if TYPE_CHECKING:
    from hypelora_jax.report.metric_tables import Table


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run or the files, and of the calibrator."""
    from hypelora_jax.calibration.calibrators import CALIBRATORS

    about = "folder of a run, which is calibrated; may be gs://..."
    flags.add_path(parser, "--workdir", "DIR", about)
    about = ".npz, .csv, .tsv or .jsonl to fit on, without a run"
    flags.add_path(parser, "--predictions", "FILE", about)
    methods = tuple(CALIBRATORS)
    parser.add_argument("--method", default="temperature", choices=methods)
    about = ".npz, .csv, .tsv or .jsonl to calibrate; with --predictions and --output"
    flags.add_path(parser, "--apply", "FILE", about)
    about = ".npz, .csv, .tsv or .jsonl to write, the rows of --apply calibrated"
    flags.add_path(parser, "--output", "FILE", about)
    flags.add_offline(parser)


def run(workdir: str, predictions: str, method: str, apply: str, output: str) -> None:
    """Print a table of before and after, then the same numbers as one JSON object."""
    from rich.console import Console

    from hypelora_jax.report import metric_tables as tables

    _check(workdir, predictions, apply, output)
    files.keep_compiled()
    if predictions:
        from hypelora_jax.evaluate import file_calibration

        result = file_calibration.calibrate(predictions, method, apply, output)
    else:
        result = _calibrate_run(workdir, method)
    Console(file=sys.stdout).print(tables.to_rich(table(result)))
    print(files.to_json(result))


def _check(workdir: str, predictions: str, apply: str, output: str) -> None:
    """Check that the flags name a run or a file, and not both."""
    if bool(workdir) == bool(predictions):
        got = "both" if workdir else "neither"
        raise UserError(
            f"calibrate got {got} of --workdir and --predictions; expected one of "
            "them: the folder of a run, or a file of predictions"
        )
    if workdir and (apply or output):
        flag = f"--apply={apply}" if apply else f"--output={output}"
        raise UserError(
            f"{flag} is for files, and --workdir names a run, whose predict and "
            "evaluate use the calibrator; expected --predictions=FILE, or no such flag"
        )


def _calibrate_run(workdir: str, method: str) -> dict[str, Any]:
    """Calibrate a run, and draw its reliability diagrams again."""
    from hypelora_jax.evaluate import recalibration
    from hypelora_jax.report import reliability
    from hypelora_jax.run.paths import Run

    result = recalibration.calibrate(workdir, method)
    calibrated = Run.open(workdir)
    for split in calibrated.predicted_splits():
        reliability.write_diagram(calibrated, split)
    return result


def table(result: dict[str, Any]) -> "Table":
    """Return a row per metric: before and after with intervals, change with p-value."""
    from hypelora_jax.report.metric_tables import Table, title_of

    rows = []
    for name, change in result["difference"].items():
        sides = (result[side][name] for side in ("before", "after"))
        said = f"{change['value']:+.3f} (p {change['p']:.2g})"
        rows.append((title_of(name), *map(_short, sides), said))
    columns = (result["judged"], result["was"], result["calibrator"], "change")
    return Table(f"calibrated by {result['method']}", columns, tuple(rows))


def _short(value: dict[str, float]) -> str:
    """Format a value with three digits, so that the table fits into 80 columns."""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
