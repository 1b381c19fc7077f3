"""Draw the picture of README.md from the runs of the demo.

    make demo
    python experiments/pictures.py --workdir=runs/demo

The script writes docs/img/reliability.png, which shows the test split.
"""

import argparse

from demo import METHODS
from etils import epath

from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.report import figures, reliability, series

SPLIT = "test"


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlag, default="runs/demo")
    parser.add_argument("--output", action=PathFlag, default="docs/img")
    args = parser.parse_args()
    figures.DPI = 100  # gives 1,200 dots, the width that a page shows
    methods = [
        series.load(epath.Path(args.workdir) / folder)._replace(name=name)
        for name, folder in METHODS.items()
    ]
    panels = [reliability.panel_of(method, SPLIT) for method in methods]
    figures.save(
        reliability.diagram(panels), epath.Path(args.output) / "reliability.png"
    )


if __name__ == "__main__":
    main()
