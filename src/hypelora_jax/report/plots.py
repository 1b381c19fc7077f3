"""Figures of a report: reliability diagrams and training curves.

Plain `Figure` objects, rendered by Agg: no display and no global state of pyplot.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.report.runs import RunView, labelled

BEFORE, AFTER, INK = "#d1495b", "#00798c", "#444444"
TRAIN = "#8d96a3"


class Panel(NamedTuple):
    """One column of a reliability figure."""

    title: str
    before: np.ndarray  # (N, Y) probabilities
    labels: np.ndarray  # (N,) classes
    after: np.ndarray | None = None  # (N, Y), if there is a temperature
    temperature: float | None = None


def panel_of(run: RunView) -> Panel | None:
    """Panel of a run; None where it has no labelled predictions of classes."""
    if (held := labelled(run)) is None:
        return None
    logits, labels = held
    before = calibrators.softmax(logits.astype(np.float64), run.train_temperature)
    if run.temperature in (None, run.train_temperature):
        return Panel(run.name, before, labels)
    after = calibrators.softmax(logits.astype(np.float64), run.temperature)
    return Panel(run.name, before, labels, after, run.temperature)


def reliability(panels: Sequence[Panel], bins: int = 10) -> Figure:
    """Reliability diagram of each panel, the histogram of its confidences below.

    A point stands at a bin's mean confidence and accuracy, its area grows with the
    bin's share of examples, its bar is the 95 % Wilson interval of the accuracy.
    """
    count = max(len(panels), 1)
    figure = Figure(figsize=(0.6 + 3.7 * count, 5.0), layout="constrained")
    axes = figure.subplots(
        2, count, sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1)
    )
    classes = max((panel.before.shape[1] for panel in panels), default=2)
    low = np.floor(bins / classes) / bins - 0.02  # no confidence is below 1 / classes
    for column, panel in zip(axes.T, panels, strict=False):
        _diagram(column[0], panel, bins, low)
        _histogram(column[1], panel, bins)
        column[1].set_xlim(low, 1.02)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("examples")
    return figure


def _series(panel: Panel) -> list[tuple[str, np.ndarray, str]]:
    if panel.after is None:
        return [("as trained", panel.before, AFTER)]
    return [
        ("before", panel.before, BEFORE),
        (f"T = {panel.temperature:.3g}", panel.after, AFTER),
    ]


def _diagram(axes: Axes, panel: Panel, bins: int, low: float) -> None:
    axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
    for name, probs, color in _series(panel):
        conf, hit, count = metrics.reliability(probs, panel.labels, bins=bins)
        conf, hit, count = (x[count > 0] for x in (conf, hit, count))
        error = metrics.ece(probs, panel.labels, bins=bins)
        interval = np.array(
            [_wilson(h * n, n) for h, n in zip(hit, count, strict=True)]
        )
        axes.vlines(conf, *interval.T, color=color, lw=1.2, alpha=0.45, zorder=2)
        axes.plot(conf, hit, color=color, lw=1.3, alpha=0.8, zorder=3)
        size = 14 + 130 * count / count.sum()
        label = f"{name}: ECE {error:.3f}"
        axes.scatter(conf, hit, size, color=color, ec="white", lw=0.8, zorder=4)
        axes.plot([], [], color=color, marker="o", ms=5, lw=1.3, label=label)
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left" if low > 0.3 else "best", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _wilson(hits: float, count: float) -> tuple[float, float]:
    test = scipy.stats.binomtest(round(float(hits)), int(count))
    interval = test.proportion_ci(method="wilson")
    return interval.low, interval.high


def _histogram(axes: Axes, panel: Panel, bins: int) -> None:
    edges = np.linspace(0, 1, bins + 1)
    for i, (_, probs, color) in enumerate(_series(panel)):
        _, _, count = metrics.reliability(probs, panel.labels, bins=bins)
        share = count / count.sum()
        axes.stairs(share, edges, fill=True, color=color, alpha=0.25, zorder=2 + i)
        axes.stairs(share, edges, color=color, lw=1.3, zorder=4 + i)
    axes.set_xlabel("confidence")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.spines[["top", "right"]].set_visible(False)


def curves(runs: Sequence[RunView]) -> Figure:
    """Train loss and validation NLL, and ECE below, over epochs, a column for each run.

    The chosen epoch is marked by a vertical line. Where no epoch has ended, the axis
    counts steps.
    """
    count = max(len(runs), 1)
    figure = Figure(figsize=(0.6 + 3.7 * count, 4.4), layout="constrained")
    axes = figure.subplots(
        2, count, sharex="col", sharey="row", squeeze=False, height_ratios=(3, 2)
    )
    for column, run in zip(axes.T, runs, strict=False):
        _curve(column[0], column[1], run)
    for row in axes:  # after all are drawn: this ends the scaling of a shared axis
        row[0].set_ylim(0, 1.04 * row[0].get_ylim()[1])
    axes[0, 0].set_ylabel("loss" if _regression(runs) else "nats")
    axes[1, 0].set_ylabel("ECE")
    return figure


def _regression(runs: Sequence[RunView]) -> bool:
    return not any("nll" in row for run in runs for row in run.curve)


def _points(rows: list[dict[str, Any]], key: str, unit: float) -> tuple[list, list]:
    held = [row for row in rows if row.get(key) is not None]
    return [row["step"] / unit for row in held], [row[key] for row in held]


def _curve(top: Axes, bottom: Axes, run: RunView) -> None:
    train = [row for row in run.curve if row.get("split") == "train"]
    epochs = [row for row in run.curve if row.get("split") == "validation"]
    unit = next((row["step"] for row in epochs if row["step"] > 0), 1)
    loss = _points(train, "loss", unit)
    dot = "." if len(loss[0]) < 30 else None  # few points make no line
    top.plot(*loss, color=TRAIN, lw=1, marker=dot, label="train loss")
    style = {"color": AFTER, "marker": "o", "ms": 4, "lw": 1.5}
    top.plot(*_points(epochs, "nll", unit), **style, label="validation NLL")
    bottom.plot(*_points(epochs, "ece", unit), **style)
    for axes in (top, bottom):
        axes.grid(color="#e6e6e6", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if run.best_step is not None:
            label = "chosen" if axes is top else None
            at = run.best_step / unit
            axes.axvline(at, color=BEFORE, lw=1, ls=(0, (4, 3)), label=label, zorder=1)
    top.set_title(run.name, fontsize=10)
    top.legend(fontsize=8, frameon=False)
    bottom.set_xlabel("epoch" if unit > 1 else "step")
    bottom.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file's bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def save(figure: Figure, path: epath.PathLike) -> None:
    """Write the figure as PNG; folders are made."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))
