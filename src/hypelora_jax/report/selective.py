"""Risk-coverage curves: the error left when the least sure answers are withheld."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from hypelora_jax.calibration import metrics
from hypelora_jax.report import figures
from hypelora_jax.report.runs import Method, examples

FEWEST = 20  # answers below which the share of errors is noise
POINTS = 400  # of a curve


def risk_coverage(methods: Sequence[Method], split: str) -> Figure | None:
    """Risk over coverage of each method, with the probabilities that `predict` gives.

    The mean over seeds, and between thin lines the lowest and the highest of them. None
    where no method has labelled predictions of classes.
    """
    drawn = []
    for method in methods:
        held = [examples(run, split) for run in method.runs]
        if all(x is not None for x in held):
            drawn.append((method, held))
    if not drawn:
        return None

    def draw(axes: Sequence[Axes]) -> None:
        for number, (method, held) in enumerate(drawn):
            least = min(FEWEST / min(len(x.labels) for x in held), 1)
            coverage = np.linspace(least, 1, POINTS)
            risks = [
                metrics.risk_at_coverage(x.final, x.labels, coverage) for x in held
            ]
            _draw(axes[0], number, method.name, coverage, np.array(risks))
        axes[0].set(xlabel="coverage", ylabel="errors among answers", xlim=(0, 1.01))
        axes[0].set_ylim(bottom=0)
        axes[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes[0].yaxis.set_major_formatter(PercentFormatter(1))
        axes[0].legend(fontsize=8, frameon=False, handlelength=3.2)
        figures.plain(axes[0])

    return figures.grid([draw], (3.2,))


def _draw(
    axes: Axes, number: int, name: str, coverage: np.ndarray, risk_SK: np.ndarray
) -> None:
    mark = figures.mark(number)
    if len(risk_SK) > 1:
        name += f", {len(risk_SK)} seeds"
        low, high = risk_SK.min(axis=0), risk_SK.max(axis=0)
        axes.fill_between(coverage, low, high, color=mark["color"], alpha=0.15, lw=0)
    # markers of the curves stand at different places, so that they do not hide others
    every = (12 + 9 * number % 50, 66)
    mean = risk_SK.mean(axis=0)
    axes.plot(coverage, mean, lw=1.5, ms=4.5, markevery=every, label=name, **mark)
