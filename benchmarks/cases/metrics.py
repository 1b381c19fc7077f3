"""Calibration metrics and their intervals against netcal and torchmetrics.

There are 100,000 predictions of three classes and ten bins. The values are compared
before they are timed. Neither package has intervals: for those, the three measures of
netcal are computed on a few bootstrap samples, and the time is multiplied.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import timing, torch_rival
from benchmarks.case import Case, Options
from benchmarks.rows import Mismatch, Row, of_times
from hypelora_jax.calibration import bootstrap, metrics

ROWS, CLASSES, BINS = 100_000, 3, 10
NAMES, REPLICAS, TIMED = ("ece", "mce", "ece_mass"), 1000, 5
TOLERANCE = 1e-5  # torchmetrics computes in float32


@functools.cache
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities and labels that they describe."""
    chance = np.random.default_rng(0)
    probs = chance.dirichlet(np.full(CLASSES, 0.7), ROWS)
    labels = (chance.random((ROWS, 1)) > probs.cumsum(axis=1)).sum(axis=1)
    return probs, np.minimum(labels, CLASSES - 1)


def _netcal() -> dict[str, Any]:
    torch_rival.torch()  # which netcal imports; says what to do without it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import netcal.metrics as theirs
    return {
        "ece": theirs.ECE(BINS),
        "mce": theirs.MCE(BINS),
        "ece_mass": theirs.ECE(BINS, equal_intervals=False),
    }


def rivals(name: str) -> dict[str, Callable[[], float]]:
    """The functions of other packages that compute a metric."""
    th, (probs, labels) = torch_rival.torch(), drawn()
    measure = _netcal()[name]
    out: dict[str, Callable[[], float]] = {
        "netcal": lambda: measure.measure(probs, labels)
    }
    if norm := {"ece": "l1", "mce": "max"}.get(name):
        from torchmetrics.functional.classification import multiclass_calibration_error

        given = th.from_numpy(probs), th.from_numpy(labels)
        kind = {"num_classes": CLASSES, "n_bins": BINS, "norm": norm}
        out["torchmetrics"] = lambda: float(
            multiclass_calibration_error(*given, **kind)
        )
    return out


def one(name: str, options: Options) -> Iterator[Row]:
    """A metric against each package that has it."""
    compute, given = getattr(metrics, name), drawn()
    for rival, theirs in rivals(name).items():
        value, other = float(compute(*given)), theirs()
        if not abs(value - other) <= TOLERANCE:
            raise Mismatch(f"{name} is {value:.8g} here and {other:.8g} in {rival}")
        found = timing.compare(
            lambda: compute(*given), {rival: theirs}, options.seconds / 5
        )
        yield of_times(f"metrics/{name}", rival, found)


def intervals(options: Options) -> Iterator[Row]:
    """1,000 bootstrap replicas of three metrics."""
    del options
    (probs, labels), measures = drawn(), _netcal()
    chance = np.random.default_rng(1)

    def ours() -> object:
        return bootstrap.intervals(probs, labels, names=NAMES, replicas=REPLICAS)

    def theirs() -> None:
        for _ in range(TIMED):
            rows = chance.integers(0, ROWS, ROWS)
            for measure in measures.values():
                measure.measure(probs[rows], labels[rows])

    found = timing.compare(ours, {"netcal": theirs}, 0, least=3)
    more = [x * REPLICAS / TIMED for x in found.theirs.wall]
    whole = found._replace(theirs=timing.Times(more, found.theirs.cpu))
    row = of_times("metrics/intervals", "netcal", whole, extrapolated_from=TIMED)
    cpu = row.notes["cpu_ratio"] * REPLICAS / TIMED
    yield row._replace(notes={**row.notes, "cpu_ratio": cpu})


CASES = {
    **{f"metrics/{name}": Case(functools.partial(one, name)) for name in NAMES},
    "metrics/intervals": Case(intervals),
}
