"""Compare runs with published numbers: one table per task, and curves over epochs."""

import csv
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.errors import UserError
from hypelora_jax.report import figures, metric_tables
from hypelora_jax.report.comparison import Cell, over_seeds
from hypelora_jax.report.series import Series, all_examples

SPLIT = "validation"


class Published(NamedTuple):
    """A number of a paper; `std` over seeds is None if there was only one run."""

    mean: float
    std: float | None


class Curve(NamedTuple):
    """Score and ECE of one method at the end of each epoch, as means over seeds."""

    name: str
    epochs: Sequence[int]
    score: Sequence[float]
    ece: Sequence[float]


class Panel(NamedTuple):
    """Curves that share axes; `score` is the score of their task."""

    title: str
    score: str
    curves: Sequence[Curve]


def cells(method: Series, names: Sequence[str], replicas: int) -> dict[str, Cell]:
    """Return the uncalibrated validation metrics of a method, with 95 % intervals.

    Intervals of one seed are bootstrap intervals over examples; some metrics have none.
    Intervals of several seeds are Student's t intervals over seeds.

    Args:
      method: runs of a classification task.
      names: names of metrics in `metrics.compute_all` or `scores.SCORES`.
      replicas: replicas of the bootstrap; 0 gives no intervals over examples.

    Raises:
      UserError: a run has no labelled predictions of classes.
    """
    held = all_examples(method, SPLIT)
    if held is None:
        raise UserError(
            f"{method.name} has no labelled predictions of {SPLIT}; expected a "
            "finished run of a classification task"
        )
    of_task = [name for name in names if name in scores.SCORES]
    found = []
    for one in held:
        every = metrics.compute_all(one.before, one.labels)
        predicted = one.before.argmax(axis=1)
        found.append(every | scores.table(of_task, predicted, one.labels))
    if len(found) > 1:
        return {name: over_seeds([one[name] for one in found]) for name in names}
    out = {name: Cell(found[0][name]) for name in names}
    if replicas:
        out |= _over_examples(held[0].before, held[0].labels, names, replicas)
    return out


def _over_examples(
    probs_NY: np.ndarray, label_N: np.ndarray, names: Sequence[str], number: int
) -> dict[str, Cell]:
    from hypelora_jax.calibration import bootstrap, replicas  # imports jax

    of_task = [name for name in names if name in scores.SCORES]
    known = replicas.names(False, len(label_N))
    others = [name for name in names if name in known and name not in of_task]
    predicted = probs_NY.argmax(axis=1)
    found = score_intervals(of_task, predicted, label_N, replicas=number)
    found |= bootstrap.intervals(probs_NY, label_N, replicas=number, names=others)
    return {name: Cell(**ends) for name, ends in found.items()}


def score_intervals(
    names: Sequence[str],
    predictions: np.ndarray,
    labels: np.ndarray,
    *,
    replicas: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Compute scores and 95 % percentile intervals: name -> {"value", "low", "high"}.

    They are computed on the host in float64. A value always lies within its interval.

    Args:
      names: names of task scores in `scores.SCORES`.
      predictions: (N,) classes, or numbers for pearson and spearman.
      labels: (N,) labels, none of them missing.
      replicas: replicas of the bootstrap, at least 2.
      seed: seed of the draws.

    Raises:
      UserError: a score is unknown.
    """
    from hypelora_jax.calibration import bootstrap  # imports jax

    predictions, labels = np.asarray(predictions), np.asarray(labels)
    value = scores.table(names, predictions, labels)
    chance, n = np.random.default_rng(seed), len(labels)
    draws = []
    for _ in range(replicas):
        rows = chance.integers(n, size=n)
        draws.append(scores.table(value, predictions[rows], labels[rows]))
    return {
        name: bootstrap.interval(name, x, np.array([draw[name] for draw in draws]))
        for name, x in value.items()
    }


def chosen_epochs(method: Series) -> list[int]:
    """Return the epoch of each run's chosen checkpoint; the first epoch is 1."""
    out = []
    for run in method.seeds:
        rows = [row for row in run.curve if row.get("split") == SPLIT]
        out += [row["epoch"] for row in rows if row["step"] == run.best_step]
    return out


def table(
    title: str,
    rows: Mapping[str, tuple[Series, Mapping[str, Cell]]],
    published: Mapping[tuple[str, str], Published],
) -> metric_tables.Table:
    """Return a table with each metric of each method and the published number.

    The keys of `published` are (key of the method, metric). Task scores are shown times
    100, as papers print them.
    """
    out, sections = [], []
    for key, (method, held) in rows.items():
        epochs = "/".join(map(str, chosen_epochs(method)))
        first = (method.name, epochs)
        for name, cell in held.items():
            theirs = published.get((key, name))
            text = (_value(name, cell), _ends(name, cell), _published(name, theirs))
            out.append(
                (*first, metric_tables.title_of(name.removesuffix("_reference")), *text)
            )
            first = ("", "")
        sections.append(len(out))
    columns = ("method", "epoch", "metric", "ours", "95 %", "paper")
    return metric_tables.Table(title, columns, tuple(out), tuple(sections))


def _number(name: str, value: float) -> str:
    return f"{100 * value:.2f}" if name in scores.SCORES else f"{value:.3f}"


def _value(name: str, cell: Cell) -> str:
    spread = "" if cell.spread is None else f" ± {_number(name, cell.spread)}"
    return _number(name, cell.value) + spread


def _ends(name: str, cell: Cell) -> str:
    if cell.low is None:
        return "-"
    return f"[{_number(name, cell.low)}, {_number(name, cell.high)}]"


def _published(name: str, found: Published | None) -> str:
    if found is None:
        return "-"
    return _value(name, Cell(found.mean, spread=found.std))


def as_dict(
    key: str, held: Mapping[str, Cell], published: Mapping[tuple[str, str], Published]
) -> dict[str, Any]:
    """Return one method's numbers as JSON: metric -> {"ours": ..., "paper": ...}."""
    out: dict[str, Any] = {}
    for name, cell in held.items():
        theirs = published.get((key, name))
        ours = {n: v for n, v in cell._asdict().items() if v not in (None, ())}
        out[name] = {"ours": ours, "paper": theirs and theirs._asdict()}
    return out


def curve(method: Series, score: str) -> Curve:
    """Return a method's validation score and ECE over epochs, the mean of its seeds."""
    by_epoch: dict[int, list[dict[str, Any]]] = {}
    for run in method.seeds:
        for row in run.curve:
            if row.get("split") == SPLIT:
                by_epoch.setdefault(row["epoch"], []).append(row)
    epochs = sorted(by_epoch)
    values = [
        [float(np.mean([row[name] for row in by_epoch[e]])) for e in epochs]
        for name in (score, "ece")
    ]
    return Curve(method.name, epochs, *values)


def over_epochs(panels: Sequence[Panel]) -> Figure:
    """Draw score and ECE over epochs, a column per panel; a name has one marker."""
    names = list(dict.fromkeys(c.name for panel in panels for c in panel.curves))
    size = (0.6 + figures.WIDTH * len(panels), 5.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col")
    for i, (title, score, curves) in enumerate(panels):
        for one in curves:
            size = 3.5 if len(one.epochs) < 30 else 2
            style = {**figures.mark(names.index(one.name)), "ms": size, "lw": 1.2}
            axes[0, i].plot(one.epochs, one.score, label=one.name, **style)
            axes[1, i].plot(one.epochs, one.ece, **style)
        axes[0, i].set_title(title, fontsize=10)
        axes[0, i].set_ylabel(metric_tables.title_of(score))
        axes[1, i].set(ylabel="ECE", xlabel="epoch", ylim=(0, None))
    for one in axes.ravel():
        one.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figures.plain(one)
    shown = {}
    for one in axes[0]:
        handles, labels = one.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    where = {"loc": "outside lower center", "ncols": 5, "fontsize": 8}
    figure.legend(shown.values(), shown.keys(), frameon=False, **where)
    return figure


def read(path: epath.PathLike) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dicts with the names in its header."""
    return list(csv.DictReader(epath.Path(path).read_text().splitlines()))
