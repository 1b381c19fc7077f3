"""Curves: loss, NLL and ECE over epochs, and risk over coverage."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hypelora_jax.calibration import metrics
from hypelora_jax.report import figures
from hypelora_jax.report.series import Series, all_examples
from hypelora_jax.run.results import Results

MARGIN = 1.06  # upper end of an axis, as a multiple of the highest point
FEWEST = 20  # with fewer answers the share of errors is noise
POINTS = 400  # points of a curve
FEW = 200  # fewer points of the train loss are drawn larger

Limits = tuple[float, float]  # highest loss and highest ECE that panels share


def training(methods: Sequence[Series], limits: Limits | None = None) -> Figure | None:
    """Plot train loss, validation NLL and ECE over epochs, with one panel per series.

    The train loss is a running mean over faint points, one for each logged step; the
    legend says how many points a mean has. A vertical line marks the chosen epoch; with
    several seeds, a star marks it on each seed's curve. If no epoch has ended, the axis
    counts steps. Returns None if there is no data.

    Args:
      methods: series without a curve are left out.
      limits: (highest loss, highest ECE) of the axes, from `highest`; None takes the
        highest of `methods`.
    """
    methods = [m for m in methods if any(run.curve for run in m.seeds)]
    if not methods:
        return None
    limits = highest(methods) if limits is None else limits
    rows = [row for m in methods for run in m.seeds for row in run.curve]
    nats = "nats" if any("nll" in row for row in rows) else "loss"

    def drawing(method: Series) -> figures.Draw:
        return lambda axes: _panel(axes, method, limits, nats)

    return figures.grid([drawing(method) for method in methods], (2.4, 1.6))


def highest(methods: Sequence[Series]) -> Limits:
    """Highest loss and ECE of all panels, because panels of one report share axes."""
    rows = [row for m in methods for run in m.seeds for row in run.curve]
    loss = [row.get("loss") for row in rows if row.get("split") == "train"]
    evaluated = [row for row in rows if row.get("split") == "validation"]
    loss += [row.get("nll") for row in evaluated]
    ece = [row.get("ece") for row in evaluated]
    tops = (max(_finite(xs), default=1.0) for xs in (loss, ece))
    loss_top, ece_top = (top or 1.0 for top in tops)
    return loss_top, ece_top


def _finite(values: Iterable[float | None]) -> list[float]:
    """Leave out what is missing, and NaN, which older logs may have."""
    return [x for x in values if x is not None and math.isfinite(x)]


def _points(rows: list[dict[str, Any]], key: str, unit: float) -> tuple[list, list]:
    logged = [row for row in rows if _finite([row.get(key)])]
    return [row["step"] / unit for row in logged], [row[key] for row in logged]


def window(n: int) -> int:
    """Points of a running mean over n points: odd, about the square root of n.

    The means then get steadier and the curve shows more detail as n grows.
    """
    return 2 * (round(math.sqrt(n)) // 2) + 1


def running_mean(x_N: Sequence[float], size: int) -> np.ndarray:
    """Mean (N,) of the `size` points around each point, of fewer at both ends.

    Args:
      x_N: the points.
      size: odd number of points, at least 1.
    """
    sums = np.cumsum([0.0, *x_N])
    at, half = np.arange(len(x_N)), size // 2
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(x_N))
    return (sums[high] - sums[low]) / (high - low)


def _panel(axes: Sequence[Axes], method: Series, limits: Limits, nats: str) -> None:
    size = window(max(len(_train(run)) for run in method.seeds))
    for number, run in enumerate(method.seeds):
        _loss(axes[0], run, size, number == 0, len(method.seeds) > 1)
        _curve(axes, run, number, len(method.seeds) > 1)
    several = f", {len(method.seeds)} seeds" if len(method.seeds) > 1 else ""
    top, bottom = axes
    top.set_title(figures.named(method.name, several), fontsize=10)
    top.set(ylabel=nats, ylim=(0, MARGIN * limits[0]))
    bottom.set(ylabel="ECE", ylim=(0, MARGIN * limits[1]))
    top.legend(fontsize=8, frameon=False, loc="best")
    bottom.set_xlabel("step" if _unit(method.seeds[0]) == 1 else "epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for one in axes:
        figures.plain(one)


def _train(run: Results) -> list[dict[str, Any]]:
    return [row for row in run.curve if row.get("split") == "train"]


def _validation(run: Results) -> list[dict[str, Any]]:
    return [row for row in run.curve if row.get("split") == "validation"]


def _unit(run: Results) -> float:
    """Number of steps in an epoch; 1 if no epoch has ended."""
    return next((row["step"] for row in _validation(run) if row["step"] > 0), 1)


def _loss(axes: Axes, run: Results, size: int, first: bool, several: bool) -> None:
    """Plot one seed's train loss: faint points, and their running mean as a line."""
    x, y = _points(_train(run), "loss", _unit(run))
    mean = f"mean of {size} points" if size > 1 else None
    named = ("train loss", mean) if first else (None, None)
    # A point has no edge, because the edges of many points add up to a dark band.
    points: dict[str, Any] = {"ls": "", "marker": ".", "mew": 0}
    points |= {"ms": 6, "alpha": 0.6} if len(x) < FEW else {"ms": 4, "alpha": 0.4}
    line: dict[str, Any] = {"lw": 0.8 if several else 1.4, "zorder": 2}
    axes.plot(x, y, color=figures.PALE, zorder=1, label=named[0], **points)
    axes.plot(x, running_mean(y, size), color=figures.BEFORE, label=named[1], **line)


def _curve(axes: Sequence[Axes], run: Results, number: int, several: bool) -> None:
    """Plot one seed's lines; only the first seed adds entries to the legend."""
    epochs, unit, first = _validation(run), _unit(run), number == 0
    thin = 0.6 if several else 1
    style: dict[str, Any] = {
        "color": figures.AFTER,
        "marker": "o",
        "ms": 4,
        "lw": 1.6 * thin,
    }
    for one, key in zip(axes, ("nll", "ece"), strict=True):
        x, y = _points(epochs, key, unit)
        said: dict[str, Any] = {}
        if first and key == "nll":
            said = {"label": "validation NLL"}
        one.plot(x, y, **style, **said)
        if run.best_step is None:
            continue
        at = run.best_step / unit
        said = {"label": "chosen"} if first and key == "nll" else {}
        if not several:
            dashes: dict[str, Any] = {
                "color": figures.INK,
                "lw": 1.1,
                "ls": figures.DASHED,
            }
            one.axvline(at, zorder=1, **dashes, **said)
        elif at in x:
            star: dict[str, Any] = {
                "marker": "*",
                "ms": 11,
                "ls": "",
                "mec": figures.INK,
            }
            one.plot(at, y[x.index(at)], color="white", zorder=5, **star, **said)


def risk_coverage(methods: Sequence[Series], split: str) -> Figure | None:
    """Plot risk over coverage of each method, with the probabilities of `predict`.

    The line is the mean over seeds, and the shaded area spans the seeds. Returns None
    if no method has labelled predictions of classes.
    """
    drawn = []
    for method in methods:
        if by_seed := all_examples(method, split):
            drawn.append((method, by_seed))
    if not drawn:
        return None

    def draw(axes: Sequence[Axes]) -> None:
        for number, (method, by_seed) in enumerate(drawn):
            least = min(FEWEST / min(len(x.labels) for x in by_seed), 1)
            coverage = np.linspace(least, 1, POINTS)
            risks = [
                metrics.risk_at_coverage(x.final, x.labels, coverage) for x in by_seed
            ]
            _risk(axes[0], number, method.name, coverage, np.array(risks))
        axes[0].set(xlabel="coverage", ylabel="errors among answers", xlim=(0, 1.01))
        axes[0].set_ylim(bottom=0)
        axes[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes[0].yaxis.set_major_formatter(PercentFormatter(1))
        names = axes[0].legend(fontsize=8, frameon=False, handlelength=3.2)
        names.set_in_layout(False)  # long names take no room from the axes
        figures.plain(axes[0])

    return figures.grid([draw], (3.2,))


def _risk(
    axes: Axes, number: int, name: str, coverage: np.ndarray, risk_SK: np.ndarray
) -> None:
    mark = figures.mark(number)
    label = figures.named(name)
    if len(risk_SK) > 1:
        label = figures.named(name, f", {len(risk_SK)} seeds")
        low, high = risk_SK.min(axis=0), risk_SK.max(axis=0)
        axes.fill_between(coverage, low, high, color=mark["color"], alpha=0.15, lw=0)
    # markers start at a different point on each curve, so that they do not overlap
    every = (12 + 9 * number % 50, 66)
    mean = risk_SK.mean(axis=0)
    axes.plot(coverage, mean, lw=1.5, ms=4.5, markevery=every, label=label, **mark)
