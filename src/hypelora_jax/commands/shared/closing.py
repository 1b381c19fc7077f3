"""The end of a run: write its report and summary.json, and print a table."""

import sys
from typing import Any

from rich.console import Console

from hypelora_jax import files
from hypelora_jax.report import metric_tables, run_tables
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes


def close(folder: Run, judged: dict[str, Any]) -> dict[str, Any]:
    """Write a finished run's report and summary.json, and print its closing table.

    Only process 0 writes. Returns `judged` unchanged.
    """
    # local, because matplotlib takes long to import and `train` prints tables earlier
    from hypelora_jax.report import html, reliability, series

    if processes.is_main():
        for split in folder.predicted_splits():
            reliability.write_diagram(folder, split)
        rows = [series.load(folder.path)]
        html.write_report(rows, folder.report_file, replicas=0)
        files.write_json(folder.summary_file, judged)
    # No process may go on before process 0 has written the whole run.
    processes.barrier("the run is written")
    print_table(run_tables.closing(judged))
    return judged


def print_table(table: metric_tables.Table) -> None:
    """Print a table on stderr, in process 0."""
    if processes.is_main():
        Console(file=sys.stderr).print(metric_tables.to_rich(table))
