"""Evaluate a run on a split: a table, then one JSON object on the last line."""

import sys
from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run, the split, and how its tasks are described."""
    flags.add_workdir(parser)
    flags.add_split(parser)
    about = "of each task of a set read only its description N, from 1, not their mean"
    parser.add_argument("--description", type=int, default=0, metavar="N", help=about)
    flags.add_offline(parser)


def run(workdir: str, split: str, description: int) -> None:
    """Print the metrics of the split and write them to DIR/eval/SPLIT."""
    from rich.console import Console

    from hypelora_jax.evaluate import evaluation
    from hypelora_jax.report import metric_tables as tables
    from hypelora_jax.report import reliability
    from hypelora_jax.run.paths import Run

    files.keep_compiled()
    result = evaluation.evaluate(workdir, split, description)
    split = result["split"]
    reliability.write_diagram(Run.open(workdir), split)
    raw = result.get("uncalibrated")
    rows = {"uncalibrated": raw, "calibrated": result} if raw else {split: result}
    table = tables.of_metrics(f"{workdir}, {split}", rows)
    Console(file=sys.stdout).print(tables.to_rich(table))
    print(files.to_json(result))
