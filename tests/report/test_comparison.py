"""Methods compared: what the numbers are, and when a difference has an interval."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from hypelora_jax.calibration import metrics
from hypelora_jax.report import comparison, series
from hypelora_jax.report.series import Series
from hypelora_jax.run.predictions import Predictions
from hypelora_jax.run.results import Results


@pytest.fixture
def calls(monkeypatch):
    """Calls of the bootstrap, which is stood in for: it has tests of its own."""
    held = []

    def intervals(probs, labels, *, soft, replicas, names):
        held.append(("intervals", probs, labels, replicas))
        value = metrics.compute_all(probs, labels, soft=soft)
        return {n: {"value": value[n], "low": 0.1, "high": 0.9} for n in names}

    def paired(probs_a, probs_b, labels, *, soft, replicas, names):
        held.append(("paired", probs_a, probs_b, labels))
        a, b = (metrics.compute_all(p, labels, soft=soft) for p in (probs_a, probs_b))
        ends = {"low": -0.2, "high": 0.3, "p": 0.25}
        return {n: {"value": a[n] - b[n], **ends} for n in names}

    stub = SimpleNamespace(intervals=intervals, paired=paired)
    monkeypatch.setattr(comparison, "_bootstrap", lambda: stub)
    return held


def test_one_seed_each_is_compared_on_the_same_examples(make_run, calls):
    methods = [series.load(make_run("a")), series.load(make_run("b", noise=0.7))]
    first, second = comparison.compare(methods, "test", "as trained", replicas=50)
    assert (first.name, first.seeds, first.n, first.calibrator) == ("a", 1, 600, "-")
    a, b = (series.examples(method.seeds[0], "test") for method in methods)
    for row, held in ((first, a), (second, b)):
        wanted = metrics.compute_all(held.before, held.labels)
        for name in ("accuracy", "nll", "brier", "ece"):
            assert row.cells[name] == comparison.Cell(wanted[name], 0.1, 0.9)
    assert first.cells["mcc"] == comparison.Cell(0.31) and first.differences == {}
    gap = second.cells["nll"].value - first.cells["nll"].value
    assert second.differences["nll"] == comparison.Cell(gap, -0.2, 0.3, p=0.25)
    assert second.differences["mcc"] == comparison.Cell(0.0)
    assert [call[0] for call in calls] == ["intervals", "intervals", "paired"]
    assert calls[0][3] == 50
    np.testing.assert_array_equal(calls[2][1], b.before)  # this one minus the first
    np.testing.assert_array_equal(calls[2][2], a.before)


def test_the_calibrated_stage_takes_what_predict_gives(make_run, calls):
    method = series.load(make_run("a"))
    plain = method.seeds[0]._replace(calibrator=None)
    methods = [method, Series("b", (plain,))]
    first, second = comparison.compare(methods, "test", "calibrated")
    held = series.examples(method.seeds[0], "test")
    wanted = metrics.compute_all(held.after, held.labels)["ece"]
    assert first.cells["ece"].value == wanted and first.calibrator.startswith("T = ")
    np.testing.assert_array_equal(calls[1][1], held.before)
    assert second.calibrator == "-"
    assert comparison.has_calibrated(methods, "test")
    assert not comparison.has_calibrated(methods[1:], "test")
    with pytest.raises(ValueError, match="stage is 'after'"):
        comparison.compare(methods, "test", "after")


def test_examples_in_another_order_are_put_right(make_run, calls):
    a, b = (series.load(make_run(name, noise=0.5)) for name in "ab")
    run = b.seeds[0]
    held = run.predictions["test"]
    order = np.random.default_rng(0).permutation(len(held.labels))
    mixed = Predictions(held.logits[order], held.labels[order], held.ids[order])
    b = Series("b", (run._replace(predictions={"test": mixed}),))
    _, row = comparison.compare([a, b], "test", "as trained")
    assert calls[-1][0] == "paired"
    np.testing.assert_array_equal(calls[-1][1], calls[-1][2])
    assert row.differences["nll"].value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("change", ["ids", "labels", "fewer"])
def test_other_examples_have_no_paired_difference(make_run, calls, change):
    method = series.load(make_run("a"))
    held = method.seeds[0].predictions["test"]
    other = {
        "ids": held._replace(ids=held.ids + 1),
        "labels": held._replace(labels=1 - held.labels),
        "fewer": Predictions(*(x[1:] for x in held[:3])),
    }[change]
    run = method.seeds[0]._replace(predictions={"test": other})
    rows = comparison.compare([method, Series("b", (run,))], "test", "as trained")
    difference = rows[1].differences["ece"]
    assert difference.low is None and difference.p is None
    gap = rows[1].cells["ece"].value - rows[0].cells["ece"].value
    assert difference.value == pytest.approx(gap)


def test_without_replicas_there_are_no_intervals(make_run, monkeypatch):
    monkeypatch.setattr(comparison, "_bootstrap", lambda: pytest.fail("it was called"))
    methods = [series.load(make_run("a")), series.load(make_run("b", noise=0.7))]
    for row in comparison.compare(methods, "test", "as trained", replicas=0):
        assert all(cell.low is None for cell in row.cells.values())


def test_over_seeds_is_the_t_interval_and_test():
    values = [0.2, 0.5, 0.3, 0.4]
    cell = comparison.over_seeds(values, compared=True)
    # by hand: mean .35, s = sqrt(.05 / 3), t(.975, 3) = 3.182446
    assert cell.value == pytest.approx(0.35)
    assert cell.spread == pytest.approx((0.05 / 3) ** 0.5)
    half = 3.182446 * (0.05 / 3) ** 0.5 / 2
    assert cell.low == pytest.approx(0.35 - half, abs=1e-6)
    assert cell.high == pytest.approx(0.35 + half, abs=1e-6)
    assert cell.p == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    assert comparison.over_seeds([0.1, 0.1]).p is None
    assert comparison.over_seeds([0.5, 0.5], compared=True).p == 0
    assert comparison.over_seeds([0.0, 0.0], compared=True).p == 1


def test_several_seeds_are_one_row_and_paired_by_seed(make_seeds, calls):
    a = series.load(make_seeds("a", [0.1, 0.3, 0.5]))
    b = series.load(make_seeds("b", [0.8, 0.6, 0.9], first=1))  # seeds 1, 2, 3
    first, second = comparison.compare([a, b], "test", "as trained")
    assert (first.seeds, first.n) == (3, 600) and calls == []
    values = [
        [metrics.compute_all(x.before, x.labels)["nll"] for x in held]
        for held in ([series.examples(r, "test") for r in m.seeds] for m in (a, b))
    ]
    assert first.cells["nll"].value == pytest.approx(np.mean(values[0]))
    assert first.cells["nll"].spread == pytest.approx(np.std(values[0], ddof=1))
    pairs = [values[1][0] - values[0][1], values[1][1] - values[0][2]]  # seeds 1, 2
    assert second.differences["nll"].value == pytest.approx(np.mean(pairs))
    assert second.differences["nll"].values == pytest.approx(tuple(pairs))
    assert first.calibrator == "-"
    calibrated = comparison.compare([a], "test", "calibrated")[0].calibrator
    fitted = sorted(run.calibrator.temperature for run in a.seeds)
    assert calibrated == f"T = {fitted[0]:.3g} to {fitted[2]:.3g}"


def test_seeds_against_one_run_have_no_interval(make_seeds, make_run, calls):
    a, b = series.load(make_run("one")), series.load(make_seeds("b", [0.3, 0.6]))
    a = a._replace(seeds=(a.seeds[0]._replace(config={"seed": 0}),))
    for pair in ([a, b], [b, a]):
        rows = comparison.compare(pair, "test", "as trained")
        difference = rows[1].differences["nll"]
        gap = rows[1].cells["nll"].value - rows[0].cells["nll"].value
        assert difference == comparison.Cell(pytest.approx(gap))


def test_a_regression_is_compared_by_its_scores():
    arrays = {"test": Predictions(np.ones((3, 1)), np.ones(3), np.arange(3))}
    scores = [{"test": {"pearson": p}} for p in (0.8, {"value": 0.7, "low": 0.6})]
    views = [Results("x", {}, s, arrays) for s in scores]
    rows = comparison.compare([Series("x", (v,)) for v in views], "test", "as trained")
    assert rows[0].cells == {"pearson": comparison.Cell(0.8)} and rows[0].n == 3
    assert rows[1].differences["pearson"].value == pytest.approx(-0.1)


def test_a_run_without_the_split_is_left_out(make_run, calls):
    a, b = series.load(make_run("a")), series.load(make_run("b"))
    bare = Series("bare", (b.seeds[0]._replace(predictions={}, metrics={}),))
    assert [r.name for r in comparison.compare([bare, a], "test", "as trained")] == [
        "a"
    ]
    assert comparison.compare([bare], "test", "as trained") == []


def test_the_real_bootstrap_answers_what_is_asked_of_it(make_run):
    methods = [series.load(make_run("a")), series.load(make_run("b", noise=1.5))]
    first, second = comparison.compare(methods, "test", "calibrated", replicas=50)
    assert not set(metrics.SOFT) & set(first.cells)  # no shares of raters
    for name in set(comparison.COMPARED) - set(metrics.SOFT):
        cell, difference = second.cells[name], second.differences[name]
        assert cell.low <= cell.value <= cell.high, name
        assert difference.low <= difference.value <= difference.high, name
        assert 0 < difference.p <= 1
    assert second.differences["nll"].low > 0 and second.differences["nll"].p < 0.05
    assert set(comparison.CHECKS) <= set(first.cells)
