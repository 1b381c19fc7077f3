"""Compile the training step for a TPU slice, without one, and check that it fits."""

import sys
from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.config.settings import Settings


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run's config and the slice."""
    flags.add_config(parser)
    about = "v5e:4x4, v5p:4x4x4, v6e:4x4, ...; cpu-N"
    parser.add_argument("--topology", required=True, help=about)


def run(config: Settings, topology: str) -> bool:
    """Print a table on stderr and a JSON object; return False if it does not fit."""
    from rich.console import Console

    from hypelora_jax.commands.shared import names
    from hypelora_jax.plan import changes, estimate_table
    from hypelora_jax.plan.estimate import estimate
    from hypelora_jax.plan.topology import topology as slice_of
    from hypelora_jax.report import metric_tables as tables

    names.check(config)
    where = slice_of(topology)
    found = estimate(config, where)
    better = [] if found.fits else changes.changes(config, where, found)
    Console(file=sys.stderr).print(tables.to_rich(estimate_table.table(found, where)))
    for line in estimate_table.advice(found, better):
        print(line, file=sys.stderr)
    print(files.to_json(estimate_table.as_dict(found, where, better)))
    return found.fits
