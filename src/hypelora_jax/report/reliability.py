"""Reliability diagrams: accuracy over confidence, with a bootstrap band."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hypelora_jax import files
from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.calibration.metrics import binned
from hypelora_jax.report import figures
from hypelora_jax.report.series import Examples, Series, all_examples, changes
from hypelora_jax.run import calibrator, predictions, results
from hypelora_jax.run.paths import Run
from hypelora_jax.run.results import Results

FEW = 10  # with fewer examples in a bin, resampling is not reliable


class Stage(NamedTuple):
    """Top-label predictions of all seeds, from one kind of probabilities."""

    name: str
    confidence: np.ndarray  # (N,)
    hit: np.ndarray  # (N,) whether the most probable class was right
    example: np.ndarray  # (N,) number of the example, equal across seeds
    ece: float  # mean over seeds


class Panel(NamedTuple):
    """One reliability diagram."""

    title: str
    stages: tuple[Stage, ...]  # as trained, and calibrated if that differs
    classes: int


def panel_of(series: Series, split: str, bins: int = 10) -> Panel | None:
    """Panel of a series, or None if it has no labelled predictions of classes."""
    if (by_seed := all_examples(series, split)) is None:
        return None
    title = series.name
    if len(by_seed) > 1:
        title += f", {len(by_seed)} seeds"
    stages = [_stage("as trained", by_seed, [x.before for x in by_seed], bins)]
    if any(x.after is not None for x in by_seed):
        names = {
            calibrators.describe(run.calibrator)
            for run in series.seeds
            if changes(run.calibrator, run.train_temperature)
        }
        name = names.pop() if len(names) == 1 else "calibrated"
        stages.append(_stage(name, by_seed, [x.final for x in by_seed], bins))
    return Panel(title, tuple(stages), by_seed[0].before.shape[1])


def write_diagram(run: Run, split: str) -> None:
    """Write the reliability diagram of an evaluated split, from its saved files.

    Nothing is written for a regression or a split without labels.
    """
    found = {split: files.read_json(run.metrics_file(split))}
    state = calibrator.read(run)
    own = Results(
        run.name,
        config={},
        metrics={},
        predictions={split: predictions.read(run.predictions_file(split))},
        calibrator=state,
        train_temperature=results.train_temperature(found, state is not None),
    )
    panel = panel_of(Series(run.name, (own,)), split)
    if panel is not None:
        figures.save(diagram([panel]), run.diagram_file(split))


def _stage(
    name: str, by_seed: Sequence[Examples], probs: Sequence[np.ndarray], bins: int
) -> Stage:
    labels = [x.labels for x in by_seed]
    pairs = list(zip(probs, labels, strict=True))
    return Stage(
        name,
        np.concatenate([p.max(axis=1) for p in probs]),
        np.concatenate([p.argmax(axis=1) == y for p, y in pairs]),
        np.unique(np.concatenate([x.ids for x in by_seed]), return_inverse=True)[1],
        float(np.mean([metrics.ece(p, y, bins=bins) for p, y in pairs])),
    )


class Limits(NamedTuple):
    """Axis limits that the panels of one report share."""

    lowest: float  # accuracy at which the axis begins
    highest: float  # largest share of examples in one bin


def limits_of(panels: Sequence[Panel], bins: int = 10) -> Limits:
    """Limits within which everything that the panels draw is visible."""
    stages = [stage for panel in panels for stage in panel.stages]
    every = [_binned(stage, bins) for stage in stages]
    confident = min(np.floor(bins / panel.classes) / bins for panel in panels)
    low = min(confident, *(one.low.min() for one in every))
    # round down to a tick of 0.2, so that the diagonal begins on the axis
    share = max((one.examples / one.examples.sum()).max() for one in every)
    return Limits(float(np.floor(5 * low + 1e-9) / 5), float(share))


def diagram(
    panels: Sequence[Panel], bins: int = 10, limits: Limits | None = None
) -> Figure:
    """Reliability diagram of each panel, with a histogram of its confidences below.

    A point is at a bin's mean confidence and accuracy, and its area grows with the
    bin's share of examples. The band is the 95 % interval of the bins' accuracies
    when the examples are drawn again (percentile bootstrap). A bin with fewer than ten
    examples, or with all of them right or all wrong, is hollow and has a bar instead,
    the Wilson interval. `limits` sets the axes when these panels must match others.
    """
    shared = limits_of(panels, bins) if limits is None else limits

    def drawing(panel: Panel) -> figures.Draw:
        return lambda axes: _panel(axes, panel, bins, shared)

    return figures.grid([drawing(panel) for panel in panels], (3.2, 1.0))


def _panel(axes: Sequence[Axes], panel: Panel, bins: int, limits: Limits) -> None:
    above, below = axes
    low = np.floor(bins / panel.classes) / bins  # no confidence is below 1 / classes
    above.plot([0, 1], [0, 1], color=figures.INK, lw=1, ls=figures.DASHED, zorder=1)
    for number, stage in enumerate(panel.stages):
        last = number == len(panel.stages) - 1  # the probabilities that `predict` gives
        style = {
            "color": figures.AFTER if last else figures.BEFORE,
            "ls": "-" if last else (0, (3, 1.5)),
        }
        label = f"{stage.name}: ECE {stage.ece:.3f}"
        _line(above, _binned(stage, bins), style, "o" if last else "s", label)
        _bars(below, _share(stage, bins), style, last)
    above.set_title(figures.named(panel.title), fontsize=10)
    bottom = limits.lowest - 0.02 * (1 - limits.lowest)
    above.set(ylim=(bottom, 1.02), ylabel="accuracy", xlim=(low - 0.02, 1.02))
    above.legend(loc="upper left" if low > 0.3 else "best", fontsize=8, frameon=False)
    below.set(xlabel="confidence", ylabel="examples")
    below.set_ylim(0, 1.08 * limits.highest)
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    below.yaxis.set_major_locator(MaxNLocator(3))
    for one in axes:
        figures.plain(one)


class _Binned(NamedTuple):
    """Arrays (M,) over the bins that have examples."""

    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray  # ends of the interval of the accuracy
    high: np.ndarray
    examples: np.ndarray
    drawn_again: np.ndarray  # (M,) bool: whether the ends come from the bootstrap


def _share(stage: Stage, bins: int) -> np.ndarray:
    count_M = np.bincount(binned.index(stage.confidence, bins), minlength=bins)
    return count_M / count_M.sum()


def _binned(stage: Stage, bins: int) -> _Binned:
    bin_N = np.asarray(binned.index(stage.confidence, bins))
    hit_N = stage.hit.astype(float)
    one_N = np.ones(len(hit_N))
    by_bin = binned.sums(bin_N, stage.confidence, hit_N, one_N, bins)
    confidence, accuracy, count = binned.means(by_bin)
    hits = by_bin.hit
    low, high = band(bin_N, stage.hit, stage.example, bins)
    # a bin that is all right or all wrong is so in every draw: no spread to measure
    again = (count >= FEW) & (hits > 0) & (hits < count)
    for m in np.flatnonzero((count > 0) & ~again):
        test = scipy.stats.binomtest(round(hits[m]), int(count[m]))
        low[m], high[m] = test.proportion_ci(method="wilson")
    every = (confidence, accuracy, low, high, count, again)
    return _Binned(*(np.asarray(x)[count > 0] for x in every))


def _line(
    axes: Axes, points: _Binned, style: dict[str, Any], marker: str, label: str
) -> None:
    x, y, low, high, count, many = points
    color = style["color"]
    axes.fill_between(x[many], low[many], high[many], color=color, alpha=0.2, lw=0)
    for end in (low, high):
        axes.plot(x[many], end[many], lw=0.6, alpha=0.6, **style)
    axes.vlines(x[~many], low[~many], high[~many], color=color, lw=0.9)
    axes.plot(x, y, lw=1.4, zorder=3, **style)
    size, face = 16 + 110 * count / count.sum(), np.where(many, color, "white")
    axes.scatter(x, y, size, c=face, ec=color, lw=1, marker=marker, zorder=4)
    axes.plot([], [], marker=marker, ms=5, lw=1.4, label=label, **style)


def band(
    bin_N: np.ndarray,
    hit_N: np.ndarray,
    example_N: np.ndarray,
    bins: int,
    replicas: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the bootstrap interval of each bin's accuracy, two arrays (M,).

    Examples are drawn with replacement; rows of one example (its seeds) are drawn
    together. The accuracies depend on an example only through its counts of right and
    wrong rows in each bin, so the draw is a multinomial over the distinct patterns of
    these counts. The ends are NaN for an empty bin.
    """
    cell_N, cells = 2 * bin_N + hit_N.astype(int), 2 * bins
    n = int(example_N.max()) + 1
    if n == len(example_N):  # with one row per example, the pattern is the row's cell
        pattern_PC, count_P = np.eye(cells), np.bincount(cell_N, minlength=cells)
    else:
        count_EC = np.zeros((n, cells), np.int32)
        np.add.at(count_EC, (example_N, cell_N), 1)
        pattern_PC, count_P = np.unique(count_EC, axis=0, return_counts=True)
    draw = np.random.default_rng(seed)
    drawn = draw.multinomial(n, count_P / n, size=replicas) @ pattern_PC
    wrong, right = drawn[:, 0::2], drawn[:, 1::2]
    out = np.full((2, bins), np.nan)
    for m in np.flatnonzero(np.bincount(bin_N, minlength=bins)):
        filled = wrong[:, m] + right[:, m] > 0
        share = right[filled, m] / (wrong[filled, m] + right[filled, m])
        if len(share):
            out[:, m] = np.quantile(share, [(1 - level) / 2, (1 + level) / 2])
    return out[0], out[1]


def _bars(axes: Axes, share_M: np.ndarray, style: dict[str, Any], filled: bool) -> None:
    edges = np.linspace(0, 1, len(share_M) + 1)
    if filled:
        axes.stairs(share_M, edges, fill=True, color=style["color"], alpha=0.25)
    axes.stairs(share_M, edges, lw=1.3, **style)
