"""The turns of two ways, and the ratio of their times with its interval."""

import itertools
import math

import numpy as np
import pytest

from benchmarks import timing


class Clock:
    """Ways that take known times, and a list of who ran."""

    def __init__(self, monkeypatch):
        self.now, self.ran = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "process_time", lambda: 2 * self.now)

    def way(self, name, *seconds):
        times = itertools.cycle(seconds)

        def run():
            self.ran.append(name)
            self.now += next(times)

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_ways_take_turns_after_a_warm_up(clock):
    ours, theirs = clock.way("a", 1.0), clock.way("b", 2.0)
    found = timing.compare(ours, {"rival": theirs}, seconds=0, least=3)
    assert "".join(clock.ran) == "ab" + "ab" * 3
    assert found.ours.wall == [1.0] * 3 and found.theirs.wall == [2.0] * 3
    assert found.wall == found.cpu == (2.0, 2.0, 2.0)
    assert found.ours.cpu == [2.0] * 3


def test_the_warm_up_is_not_counted(clock):
    slow_first = iter([100.0, 1.0, 1.0, 1.0])

    def ours():
        clock.now += next(slow_first)

    found = timing.compare(ours, {"rival": clock.way("b", 2.0)}, 0, least=3)
    assert found.ours.wall == [1.0] * 3


def test_the_fastest_rival_goes_on(clock):
    rivals = {"slow": clock.way("s", 9.0), "fast": clock.way("f", 3.0)}
    found = timing.compare(clock.way("a", 1.0), rivals, seconds=0, least=4)
    assert "".join(clock.ran) == "asf" + "asf" * timing.TRIAL + "af" * 2
    assert found.fastest == "fast" and found.theirs.wall == [3.0] * 4
    assert found.trials == {"slow": 9.0, "fast": 3.0}


def test_rounds_end_with_the_time_or_at_the_most(clock):
    ways = clock.way("a", 1.0), {"rival": clock.way("b", 1.0)}
    assert len(timing.compare(*ways, seconds=20, least=2).ours.wall) == 10
    assert len(timing.compare(*ways, seconds=1e9, most=7).ours.wall) == 7


def test_ratios_are_paired(clock):
    """Drift that slows both ways in a round leaves the ratio of the round."""
    ours, theirs = clock.way("a", 1.0, 10.0, 5.0), clock.way("b", 2.0, 20.0, 10.0)
    found = timing.compare(ours, {"rival": theirs}, seconds=0, least=3)
    assert found.wall == (2.0, 2.0, 2.0)


def test_an_interval_by_hand():
    # 8 values: from the 1st to the 8th misses with 2 / 256, from the 2nd to the 7th
    # with 18 / 256 = 7 %, which is more than 5 %.
    assert timing.interval([8, 7, 6, 5, 4, 3, 2, 1]) == (4.5, 1, 8)
    # 9 values: from the 2nd to the 8th misses with 20 / 512 = 3.9 %
    assert timing.interval([*range(1, 10)]) == (5, 2, 8)
    assert timing.interval([3.0]) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("n", [6, 9, 20, 60])
def test_an_interval_has_the_median_as_often_as_it_says(n):
    chance = np.random.default_rng(n)
    values = chance.exponential(size=(4000, n))
    ends = [timing.interval(row) for row in values.tolist()]
    inside = np.mean([low <= math.log(2) <= high for _, low, high in ends])
    assert inside >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_a_way_in_another_process_returns_its_own_seconds():
    spent = timing.Spent(2.0, 3.0)
    assert timing.once(lambda: spent) == spent
    found = timing.compare(lambda: None, {"rival": lambda: spent}, seconds=0, least=3)
    assert found.theirs == timing.Times([2.0] * 3, [3.0] * 3)
