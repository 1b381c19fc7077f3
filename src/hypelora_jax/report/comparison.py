"""Compares methods by means, intervals and paired differences to the first method.

With one seed, the interval is over examples (bootstrap), and the difference to the
first method is paired on the same examples. With several seeds, both are over seeds
(Student's t, in pairs of equal seeds), and the examples are fixed. The first asks
whether other examples would give this number, the second whether another training run
would.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import scipy

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.report.metric_tables import SCORES
from hypelora_jax.report.series import Series, examples
from hypelora_jax.run.results import Results

COMPARED = ("accuracy", "nll", "brier", "ece", "smooth_ece", "aurc", *metrics.SOFT)
CHECKS = ("ece", "ece_noise_floor", "consistency_p")
STAGES = ("as trained", "calibrated")


class Cell(NamedTuple):
    """A metric of a method; a field is None if it is not known."""

    value: float  # mean over seeds
    low: float | None = None  # ends of the 95 % interval
    high: float | None = None
    spread: float | None = None  # standard deviation over seeds (n - 1)
    p: float | None = None  # two-sided p-value of a difference
    values: tuple[float, ...] = ()  # one of each seed if there are several


class Row(NamedTuple):
    """A method on one split, at one stage."""

    name: str
    seeds: int
    n: int  # examples of a seed; 0 if the run has no predictions
    calibrator: str  # "-" if there is none
    cells: Mapping[str, Cell]
    differences: Mapping[str, Cell]  # to the first method, which itself has {}
    averaged: str = "-"  # what predictions average over; "-" for one model


def compare(
    methods: Sequence[Series], split: str, stage: str, replicas: int = 1000
) -> list[Row]:
    """Compare the methods that have metrics of a split, one row for each.

    Args:
      methods: the others are compared with the first one that has metrics.
      split: split of the predictions.
      stage: "as trained" (probabilities without the post-hoc calibrator), or
        "calibrated" (the probabilities that `predict` gives).
      replicas: number of bootstrap replicas; 0 gives no intervals over examples.

    Raises:
      ValueError: an unknown stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; expected one of {STAGES}")
    judged = [(m, [_judge(run, split, stage) for run in m.seeds]) for m in methods]
    judged = [(m, runs) for m, runs in judged if all(run.values for run in runs)]
    rows: list[Row] = []
    for method, runs in judged:
        cells = _cells(runs, replicas)
        differences = {} if not rows else _differences(judged[0][1], runs, replicas)
        n = 0 if runs[0].labels is None else len(runs[0].labels)
        about = (method.name, len(runs), n, _described(method, stage))
        rows.append(Row(*about, cells, differences, _averaged(method, split)))
    return rows


def has_calibrated(methods: Sequence[Series], split: str) -> bool:
    """Whether a post-hoc calibrator changes the probabilities of any run."""
    every = [examples(run, split) for method in methods for run in method.seeds]
    return any(h is not None and h.after is not None for h in every)


class _Judged(NamedTuple):
    values: dict[str, float]
    seed: int | None
    probs: np.ndarray | None = None
    labels: np.ndarray | None = None
    ids: np.ndarray | None = None
    soft: np.ndarray | None = None


def _judge(run: Results, split: str, stage: str) -> _Judged:
    saved = run.metrics.get(split, {})
    values = {name: _number(saved[name]) for name in SCORES if name in saved}
    if (rows := examples(run, split)) is None:  # usually a regression
        kept = run.predictions.get(split)
        if kept is None:
            return _Judged(values, run.seed)
        return _Judged(values, run.seed, None, kept.labels, kept.ids)
    probs = rows.before if stage == "as trained" else rows.final
    every = metrics.compute_all(probs, rows.labels, soft=rows.soft)
    named = dict.fromkeys((*COMPARED, *CHECKS))
    values |= {name: every[name] for name in named if name in every}
    return _Judged(values, run.seed, probs, rows.labels, rows.ids, rows.soft)


def _number(value: float | Mapping[str, float]) -> float:
    return value["value"] if isinstance(value, Mapping) else value


def _described(method: Series, stage: str) -> str:
    states = [run.calibrator for run in method.seeds]
    if stage == "as trained" or all(state is None for state in states):
        return "-"
    names = dict.fromkeys("-" if s is None else calibrators.describe(s) for s in states)
    if len(names) > 2 and all(isinstance(s, calibrators.Temperature) for s in states):
        ends = [how(state.temperature for state in states) for how in (min, max)]
        return "T = {:.3g} to {:.3g}".format(*ends)
    return ", ".join(names)


def _averaged(method: Series, split: str) -> str:
    """Kind of uncertainty, members and their mean pairwise disagreement."""
    every = [run.metrics.get(split, {}).get("uncertainty") for run in method.seeds]
    averages = [one for one in every if one]
    if not averages:
        return "-"
    said = f"{averages[0]['kind']}, K = {averages[0]['members']}"
    apart = [one["disagreement"] for one in averages if "disagreement" in one]
    return f"{said}, {np.mean(apart):.1%} disagree" if apart else said


def _bootstrap() -> ModuleType:
    # local, because the bootstrap compiles programs that --replicas=0 does not need
    from hypelora_jax.calibration import bootstrap

    return bootstrap


def _cells(runs: Sequence[_Judged], replicas: int) -> dict[str, Cell]:
    names = [name for name in runs[0].values if all(name in r.values for r in runs)]
    if len(runs) > 1:
        return {n: over_seeds([run.values[n] for run in runs]) for n in names}
    run = runs[0]
    intervals = {}
    if replicas and run.probs is not None:
        wanted = [name for name in COMPARED if name in run.values]
        intervals = _bootstrap().intervals(
            run.probs, run.labels, soft=run.soft, replicas=replicas, names=wanted
        )
    return {name: _cell(run.values[name], intervals.get(name)) for name in names}


def _cell(value: float, interval: Mapping[str, float] | None) -> Cell:
    if interval is None:
        return Cell(value)
    return Cell(value, interval["low"], interval["high"], p=interval.get("p"))


def over_seeds(values: Sequence[float], compared: bool = False) -> Cell:
    """Mean of the values of two or more seeds, its 95 % t interval and their spread.

    Args:
      values: one value for each seed.
      compared: whether the values are differences; p then tests whether their mean is
        0 (two-sided t test).
    """
    value, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    error, free = spread / np.sqrt(len(values)), len(values) - 1
    half = float(scipy.stats.t.ppf(0.975, free) * error)
    p = None
    if compared:
        certain = float(value == 0)  # without spread t is 0 / 0 or infinite
        p = float(2 * scipy.stats.t.sf(abs(value) / error, free)) if error else certain
    return Cell(value, value - half, value + half, spread, p, tuple(values))


def _differences(
    first: Sequence[_Judged], runs: Sequence[_Judged], replicas: int
) -> dict[str, Cell]:
    """This method minus the first one, in pairs of seeds or examples if they match."""
    names = [n for n in runs[0].values if n in first[0].values and n not in CHECKS[1:]]
    if len(first) == len(runs) == 1:
        return _over_examples(first[0], runs[0], names, replicas)
    by_seed = {run.seed: run for run in first}
    pairs = [(by_seed[r.seed], r) for r in runs if by_seed.get(r.seed) is not None]
    whole = len(first) > 1 and len(runs) > 1 and len(pairs) > 1
    if whole and all(_aligned(a, b) is not None for a, b in pairs):
        return {
            name: over_seeds([b.values[name] - a.values[name] for a, b in pairs], True)
            for name in names
        }
    return {
        name: Cell(
            float(np.mean([b.values[name] for b in runs]))
            - float(np.mean([a.values[name] for a in first]))
        )
        for name in names
    }


def _over_examples(
    first: _Judged, run: _Judged, names: Sequence[str], replicas: int
) -> dict[str, Cell]:
    intervals, order = {}, _aligned(first, run)
    if replicas and order is not None and run.probs is not None:
        wanted = [name for name in COMPARED if name in names]
        intervals = _bootstrap().paired(
            run.probs[order],
            first.probs,
            first.labels,
            soft=first.soft,
            replicas=replicas,
            names=wanted,
        )
    return {
        name: _cell(run.values[name] - first.values[name], intervals.get(name))
        for name in names
    }


def _aligned(first: _Judged, run: _Judged) -> np.ndarray | None:
    """Order that aligns a run's examples with the first one's; None if they differ."""
    if first.ids is None or run.ids is None or len(first.ids) != len(run.ids):
        return None
    if first.labels is None or run.labels is None:
        return None
    order = np.arange(len(run.ids))
    if not np.array_equal(first.ids, run.ids):
        at = {name: i for i, name in enumerate(run.ids.tolist())}
        order = np.array([at.get(name, -1) for name in first.ids.tolist()])
        if (order < 0).any() or len(at) < len(order):
            return None
    return order if np.array_equal(first.labels, run.labels[order]) else None
