"""Timing in turns, and the ratio of two ways with an interval."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

LEAST, MOST = 5, 60  # rounds; five ratios give an interval of 94 %
TRIAL = 2  # rounds after which only the fastest of several rivals goes on


class Times(NamedTuple):
    """Seconds of each run of one way: of the clock, and of all cores together."""

    wall: list[float]
    cpu: list[float]


class Spent(NamedTuple):
    """Seconds of one run; a way that runs in another process returns its own."""

    wall: float
    cpu: float


class Ratio(NamedTuple):
    """Median of paired ratios, and the interval around it."""

    ratio: float
    low: float
    high: float


class Compared(NamedTuple):
    """One way against the fastest of its rivals."""

    ours: Times
    theirs: Times
    fastest: str  # name of the fastest rival
    trials: dict[str, float]  # median seconds of each rival in the first rounds

    @property
    def wall(self) -> Ratio:
        """Ratio of the clock's seconds; above 1 means that ours is faster."""
        return ratio(self.theirs.wall, self.ours.wall)

    @property
    def cpu(self) -> Ratio:
        """Ratio of the seconds of all cores."""
        return ratio(self.theirs.cpu, self.ours.cpu)


def once(way: Callable[[], object]) -> Spent:
    """Run a way, and return its seconds of the clock and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = way()
    if isinstance(found, Spent):
        return found
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def rounds(
    ways: Mapping[str, Callable[[], object]], count: int, into: dict[str, Times]
) -> None:
    """Add `count` rounds to `into`; in a round every way runs once, in order."""
    for _ in range(count):
        for name, way in ways.items():
            wall, cpu = once(way)
            into[name].wall.append(wall)
            into[name].cpu.append(cpu)


def compare(
    ours: Callable[[], object],
    rivals: Mapping[str, Callable[[], object]],
    seconds: float,
    least: int = LEAST,
    most: int = MOST,
) -> Compared:
    """Run ours and its rivals in turns: A B A B ...

    Each way runs once before the clock is read. With several rivals, all of them take
    part in the first two rounds; the one with the least median goes on.

    Args:
      ours: runs our way once.
      rivals: run the other ways once, by name.
      seconds: no further round begins after this time, if there are `least` rounds.
      least: rounds at the least.
      most: rounds at most.
    """
    ways = {"": ours, **rivals}
    for way in ways.values():
        way()
    start = time.perf_counter()
    times = {name: Times([], []) for name in ways}
    rounds(ways, TRIAL if len(rivals) > 1 else 1, times)
    trials = {name: statistics.median(times[name].wall) for name in rivals}
    fastest = min(trials, key=trials.__getitem__)
    pair = {"": ours, fastest: rivals[fastest]}
    while (done := len(times[""].wall)) < most:
        if done >= least and time.perf_counter() - start >= seconds:
            break
        rounds(pair, 1, times)
    return Compared(times[""], times[fastest], fastest, trials)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Ratio of the times of each round, as median and interval."""
    return interval([b / a for a, b in zip(ours, theirs, strict=True)])


def interval(values: Sequence[float], share: float = 0.95) -> Ratio:
    """Median, and an interval of order statistics that has its true value.

    The interval from the k-th smallest to the k-th largest of n values misses the true
    median with a probability of 2 P(Binomial(n, 1/2) < k), whatever the distribution
    (Thompson 1936). k is the largest that covers `share`; it is 1 where none does: 5
    values cover 94 %, and fewer cover less.
    """
    n, found = len(values), sorted(values)
    k = 1
    while 2 * k < n and _missed(n, k + 1) <= 1 - share:
        k += 1
    return Ratio(statistics.median(found), found[k - 1], found[n - k])


def _missed(n: int, k: int) -> float:
    """Probability that the interval from rank k to rank n + 1 - k misses the median."""
    return 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
