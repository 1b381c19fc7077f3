"""The plots of docs/benchmarks.md, drawn from the details of a JSON file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def laws(details: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each quantity that grew: the law of the step's seconds."""
    out = []
    for one in details:
        if "coefficients" not in one:
            continue
        first, *rest = one["coefficients"]
        powers = ["", "²", "³"]
        terms = [
            f"{1000 * c:+.3g} ms x n{powers[i]}".replace("+", "+ ").replace("-", "- ")
            for i, c in enumerate(rest)
        ]
        name, off = one["name"].split("/")[1], one["largest_deviation"]
        values = f"{one['values'][0]} to {one['values'][-1]}"
        out.append(
            f"- {name}, n from {values}: {1000 * first:.3g} ms {' '.join(terms)}; no "
            f"value is more than {off:.0%} off."
        )
    return out


def draw(details: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a panel for each quantity that grew: medians, and the law as a line."""
    from matplotlib.figure import Figure

    grown = [one for one in details if "coefficients" in one]
    figure = Figure(figsize=(9, 2.8 * -(-len(grown) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(grown) // 3), min(3, len(grown)), squeeze=False)
    for axis, one in zip(axes.flat, grown, strict=False):
        xs = np.linspace(0, one["values"][-1], 100)
        curve = np.polynomial.Polynomial(one["coefficients"])
        axis.plot(xs, curve(xs), color="0.6", linewidth=1)
        axis.plot(one["values"], one["seconds"], "o", color="teal", markersize=4)
        axis.set(title=one["name"].split("/")[1], xlabel=one["unit"] + "s", ylim=0)
        axis.set_ylabel("seconds a step")
    for axis in axes.flat[len(grown) :]:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
