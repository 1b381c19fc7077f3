"""Train LoRA, HypeLoRA and head-only on rated film sentences with one command.

    make demo        or        python experiments/demo.py --workdir=runs/demo

MiniLM and the sentences come from PyPI packages. The script prints a table of the test
split and writes report.html to the folder of the runs. If it was stopped, the same
command continues.
"""

import argparse
import logging
import os
import sys
import time

from etils import epath
from rich.console import Console

from hypelora_jax import cli
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train
from hypelora_jax.config.settings import from_dict
from hypelora_jax.report import html, metric_tables, series
from hypelora_jax.report.series import Series

REPLICAS = 500  # of the bootstrap; intervals are good to a tenth of their width
METHODS = {"LoRA": "lora", "HypeLoRA": "hyper_mlp", "head only": "head"}


def stages(workdir: epath.Path) -> list[Series]:
    """Train the three methods, one after the other, and log how long each took."""
    views = []
    logging.info("stage set-up: %s s", os.environ.get("HYPELORA_SETUP_SECONDS", "0"))
    for name, method in METHODS.items():
        start = time.monotonic()
        config = cli.load_config(f"demo:method={method}")
        train(from_dict(config.to_dict()), str(workdir / method))
        views.append(series.load(workdir / method)._replace(name=name))
        logging.info("stage %s: %.0f s", name, time.monotonic() - start)
    return views


def run(workdir: epath.Path) -> None:
    """Run all stages, then write the report and print the table."""
    views = stages(workdir)
    start = time.monotonic()
    html.write_report(views, workdir / "report.html", replicas=REPLICAS)
    logging.info("stage report: %.0f s", time.monotonic() - start)
    named = [view.seeds[0]._replace(name=view.name) for view in views]
    table = metric_tables.before_after(named, "test")
    Console().print(metric_tables.to_rich(table))
    print(f"report: {workdir / 'report.html'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlag, default="runs/demo")
    workdir = epath.Path(parser.parse_args().workdir)
    sys.exit(cli.launch(__file__, lambda: run(workdir)))
