"""How the time of a training step grows with sites, rank, layers, tokens and others.

One quantity grows and the others stay: LoRA of rank 8 on q and v, random weights of
MiniLM's sizes, 32 rows of 32 tokens (8 rows where tokens grow), dropout on. Conditions
and the width of the hyper-network grow with hyper_mlp, conditions at 32 rows of 64
tokens. The steps of all values take turns. The law is a polynomial, fitted to the
medians by least squares: a line, or for tokens a parabola, because attention has pairs
of tokens. A row compares the smallest value with the largest one.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks import ours, timing
from benchmarks.case import Case, Options
from benchmarks.cases import conditions
from benchmarks.rows import Row

MODEL, ROWS, TOKENS = "random:minilm", 32, 32
ROUNDS = 4
MODULES = ("q", "v", "k", "o", "up", "down")


class Growth(NamedTuple):
    """A quantity, its values, and the step for one of them."""

    unit: str
    values: tuple[int, ...]
    step: Callable[[int], ours.Step]
    degree: int = 1  # of the polynomial


def _step(rows: int = ROWS, tokens: int = TOKENS, **model: Any) -> ours.Step:
    return ours.step(ours.ours(MODEL, **model), rows, tokens, True)


def _of_sites(count: int) -> ours.Step:
    targets = MODULES[: count // 6]  # six layers
    return _step(lora=(("targets", targets),))


def _of_width(width: int) -> ours.Step:
    return _step(method="hyper_mlp", hyper=(("widths", (width, width)),))


GROWTHS = {
    "sites": Growth("site", (6, 12, 18, 24, 30, 36), _of_sites),
    "rank": Growth(
        "rank", (2, 8, 32, 64, 128), lambda r: _step(lora=(("rank", r), ("alpha", 8.0)))
    ),
    "layers": Growth("layer", (2, 4, 6, 12), lambda n: _step(layers=n)),
    "tokens": Growth(
        "token", (16, 32, 64, 128, 256), lambda t: _step(rows=8, tokens=t), degree=2
    ),
    "conditions": Growth(
        "condition", (1, 2, 8, 16, 32), lambda u: conditions.step(u, False)
    ),
    "width": Growth("unit of width", (64, 256, 512, 1024, 2048), _of_width),
}


def law(xs: list[float], seconds: list[float], degree: int) -> dict[str, Any]:
    """Coefficients, lowest power first, and the largest relative deviation."""
    found = np.polynomial.Polynomial.fit(xs, seconds, degree).convert()
    off = np.abs(found(np.array(xs)) / np.array(seconds) - 1)
    return {"coefficients": found.coef.tolist(), "largest_deviation": float(off.max())}


def grown(name: str, options: Options) -> Iterator[Row]:
    """Seconds at each value, in turns, and the law they follow."""
    del options
    of = GROWTHS[name]
    ways = {str(x): of.step(x).run for x in of.values}
    for way in ways.values():
        way()
    times = {x: timing.Times([], []) for x in ways}
    timing.rounds(ways, ROUNDS, times)
    walls = [times[str(x)].wall for x in of.values]
    medians = [float(np.median(wall)) for wall in walls]
    found = timing.ratio(walls[0], walls[-1])
    notes = {"unit": of.unit, "values": list(of.values), "seconds": medians}
    notes |= law([float(x) for x in of.values], medians, of.degree)
    first = f"{of.values[0]} of {of.values[-1]}"
    yield Row(f"growth/{name}", first, *found, medians[-1], medians[0], "s", notes)


CASES = {f"growth/{n}": Case(functools.partial(grown, n)) for n in GROWTHS}
