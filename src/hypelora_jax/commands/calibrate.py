"""Fit a calibrator on the calibration split and compare validation before and after."""

import json
import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from hypelora_jax import files
from hypelora_jax.commands.shared import flags

if TYPE_CHECKING:
    from hypelora_jax.report.metric_tables import Table


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run and the calibrator."""
    from hypelora_jax.calibration.calibrators import CALIBRATORS

    flags.add_workdir(parser)
    parser.add_argument("--method", default="temperature", choices=tuple(CALIBRATORS))
    flags.add_offline(parser)


def run(workdir: str, method: str) -> None:
    """Print a table of before and after, then the same numbers as one JSON object."""
    from rich.console import Console

    from hypelora_jax.evaluate import recalibration
    from hypelora_jax.report import metric_tables as tables
    from hypelora_jax.report import reliability
    from hypelora_jax.run.paths import Run

    files.keep_compiled()
    result = recalibration.calibrate(workdir, method)
    calibrated = Run.open(workdir)
    for split in calibrated.predicted_splits():
        reliability.write_diagram(calibrated, split)
    Console(file=sys.stdout).print(tables.to_rich(table(result)))
    print(json.dumps(result))


def table(result: dict[str, Any]) -> "Table":
    """Return a row per metric: before and after with intervals, change with p-value."""
    from hypelora_jax.report.metric_tables import Table, title_of

    rows = []
    for name, change in result["difference"].items():
        sides = (result[side][name] for side in ("before", "after"))
        said = f"{change['value']:+.3f} (p {change['p']:.2g})"
        rows.append((title_of(name), *map(_short, sides), said))
    columns = ("validation", result["was"], result["calibrator"], "change")
    return Table(f"calibrated by {result['method']}", columns, tuple(rows))


def _short(value: dict[str, float]) -> str:
    """Format a value with three digits, so that the table fits into 80 columns."""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
