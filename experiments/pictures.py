"""Draw the picture of README.md from the runs of the demo.

    make demo
    python experiments/pictures.py --workdir=runs/demo

The script writes docs/img/reliability.png, which shows the test split.
"""

import argparse
from pathlib import Path

from demo import METHODS

from hypelora_jax.report import figures, reliability, series

SPLIT = "test"


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--output", type=Path, default=Path("docs/img"))
    args = parser.parse_args()
    figures.DPI = 100  # gives 1,200 dots, the width that a page shows
    methods = [
        series.load(args.workdir / folder)._replace(name=name)
        for name, folder in METHODS.items()
    ]
    panels = [reliability.panel_of(method, SPLIT) for method in methods]
    figures.save(reliability.diagram(panels), args.output / "reliability.png")


if __name__ == "__main__":
    main()
