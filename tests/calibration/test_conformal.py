"""Conformal sets hold the label as often as asked, whatever the model."""

import math

import numpy as np
import pytest
import simulated

from hypelora_jax.calibration import calibrators, conformal
from hypelora_jax.errors import UserError

NAMES = [name for name in calibrators.CALIBRATORS if name != "identity"]
FIT, NEW, SPLITS = 99, 100, 150


def simulate(classes, coverage, sets, by_class, scale=2.0):
    """Mean coverage over simulated splits, and the standard error of that mean."""
    draw = np.random.default_rng(classes)
    hits = []
    for seed in range(SPLITS):
        logits, labels = simulated.split(classes, FIT + NEW, seed, scale)
        probs, u = calibrators.softmax(logits), draw.random(FIT + NEW)
        held = (probs[:FIT], labels[:FIT], coverage, sets, by_class, u[:FIT])
        member = conformal.members(conformal.fit(*held), probs[FIT:], u[FIT:])
        hits.append(member[np.arange(NEW), labels[FIT:]].mean())
    return np.mean(hits), np.std(hits, ddof=1) / math.sqrt(SPLITS)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("coverage", [0.5, 0.9])
@pytest.mark.parametrize("sets", conformal.SETS)
def test_coverage_is_as_asked_within_binomial_error(sets, coverage, classes):
    """With 99 examples and no ties it is exact: the 90th score, of 100 places."""
    got, error = simulate(classes, coverage, sets, by_class=False)
    # given the scores, hits are binomial; over splits beta-binomial: 1.4 times that
    binomial = math.sqrt(coverage * (1 - coverage) / (NEW * SPLITS))
    assert error < 2 * binomial
    assert got == pytest.approx(coverage, abs=4 * error)


@pytest.mark.parametrize("sets", conformal.SETS)
def test_by_class_covers_every_class(sets):
    classes, coverage = 3, 0.8
    draw, hits = np.random.default_rng(0), np.zeros((2, classes))
    for seed in range(60):
        # the last class is rare, and the model favours the first
        logits, labels = simulated.split(classes, 400, seed)
        probs, u = calibrators.softmax(logits + [1.0, 0.0, -1.0]), draw.random(400)
        held = (probs[:200], labels[:200], coverage, sets, True, u[:200])
        member = conformal.members(conformal.fit(*held), probs[200:], u[200:])
        hit = member[np.arange(200), labels[200:]]
        hits[0] += np.bincount(labels[200:], hit, classes)
        hits[1] += np.bincount(labels[200:], minlength=classes)
    got = hits[0] / hits[1]
    # ceil((n + 1) c) / (n + 1) with 40 to 80 examples a class: c to c + .025
    error = np.sqrt(2 * coverage * (1 - coverage) / hits[1])
    assert (got > coverage - 4 * error).all() and (
        got < coverage + 0.025 + 4 * error
    ).all()


QUICK = ("temperature", "isotonic", "histogram")


def fit(name, logits, labels):
    if name == "dirichlet":  # the search for a penalty is not what is tested
        return calibrators.affine.fit_dirichlet(logits, labels, penalty=0.01)
    return calibrators.build(name).fit(logits, labels)


def simulate_calibrated(name, splits, n=200):
    """Coverages of sets of a calibrator that was fitted on the same n examples."""
    draw = np.random.default_rng(0)
    for seed in range(splits):
        logits, labels = simulated.split(3, 2 * n, seed)
        state = fit(name, logits[:n], labels[:n])
        probs = calibrators.cross_fitted(state, logits[:n], labels[:n])
        u = draw.random(2 * n)
        threshold = conformal.fit(probs, labels[:n], 0.9, "aps", u_N=u[:n])
        new = calibrators.apply(state, logits[n:])
        yield conformal.members(threshold, new, u[n:])[np.arange(n), labels[n:]].mean()


def check_calibrated(name, splits):
    got = list(simulate_calibrated(name, splits))
    error = np.std(got, ddof=1) / math.sqrt(splits)
    assert 0.9 - 3 * error < np.mean(got) < 0.91 + 3 * error


@pytest.mark.parametrize("name", QUICK)
def test_a_calibrator_fitted_on_the_same_split_does_not_cost_coverage(name):
    check_calibrated(name, splits=12)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_no_calibrator_costs_coverage_over_many_splits(name):
    check_calibrated(name, splits=200)


def test_thr_by_hand():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 0, 1, 0])
    # scores .1 .2 .3 .6; coverage .8 of 4: the ceil(5 * .8) = 4th, .6
    threshold = conformal.fit(probs, labels, 0.8)
    np.testing.assert_allclose(threshold.score_Y, 0.6)
    new = np.array([[0.95, 0.05], [0.5, 0.5]])
    np.testing.assert_array_equal(conformal.members(threshold, new), [[1, 0], [1, 1]])
    low = conformal.fit(probs, labels, 0.2)  # the first score, .1
    member = conformal.members(low, new)
    np.testing.assert_array_equal(member, [[1, 0], [0, 0]])


def test_aps_and_raps_by_hand():
    probs, u = np.array([[0.2, 0.5, 0.3]]), np.array([0.5])
    np.testing.assert_allclose(conformal.aps(probs, u), [[0.9, 0.25, 0.65]])
    got = conformal.raps(probs, u, free=1, penalty=0.1)
    np.testing.assert_allclose(got, [[1.1, 0.25, 0.75]])


def test_ties_are_ranked_in_the_order_of_classes():
    got = conformal.aps(np.full((1, 4), 0.25), np.ones(1))
    np.testing.assert_allclose(got, [[0.25, 0.5, 0.75, 1]])


def test_too_few_examples_give_every_class():
    probs = np.array([[0.9, 0.1], [0.2, 0.8]])
    threshold = conformal.fit(probs, np.array([0, 1]), 0.9)
    assert conformal.members(threshold, probs).all()
    # class 1 has no example at all
    threshold = conformal.fit(probs[:1], np.array([0]), 0.4, by_class=True)
    np.testing.assert_array_equal(np.isinf(threshold.score_Y), [False, True])


@pytest.mark.parametrize("n, rank", [(9, 9), (10, 10), (19, 18), (99, 90)])
def test_the_rank_is_not_moved_by_rounding(n, rank):
    assert conformal._quantile(np.arange(1.0, n + 1), 0.9) == rank


def test_more_coverage_is_larger_sets():
    logits, labels = simulated.split(4, 1000)
    probs = calibrators.softmax(logits)
    for sets in conformal.SETS:
        held = [
            conformal.members(conformal.fit(probs, labels, c, sets), probs)
            for c in (0.5, 0.8, 0.95)
        ]
        assert (held[0] <= held[1]).all() and (held[1] <= held[2]).all()


def test_judge_by_hand():
    member = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    got = conformal.judge(member, np.array([0, 1, 1, 1]))
    assert got["coverage"]["value"] == 0.75
    # Clopper and Pearson, 3 of 4: the .025 point of Beta(3, 2), .975 of Beta(4, 1)
    assert got["coverage"]["low"] == pytest.approx(0.19412045)
    assert got["coverage"]["high"] == pytest.approx(0.975**0.25)
    assert (got["size"], got["empty"], got["single"]) == (1.0, 0.25, 0.5)
    assert got["worst_class"] == pytest.approx(2 / 3)


def test_summary_says_what_each_kind_did():
    logits, labels = simulated.split(4, 4000)
    probs = calibrators.softmax(logits / 2)
    got = conformal.summary(probs[:2000], labels[:2000], probs[2000:], labels[2000:])
    assert (got["wanted"], got["n_calibration"], got["n"]) == (0.9, 2000, 2000)
    for name in (*conformal.SETS, "thr_by_class"):
        assert got[name]["coverage"]["value"] == pytest.approx(0.9, abs=0.03)
        assert 1 < got[name]["size"] < 4
    assert got["thr"]["size"] == min(
        got[name]["size"] for name in ("thr", "aps", "raps")
    )
    assert got["thr_by_class"]["worst_class"] > 0.86
    again = conformal.summary(probs[:2000], labels[:2000], probs[2000:], labels[2000:])
    assert again == got


def test_a_text_has_one_number():
    numbers = [conformal.uniform_of(f"text {i}") for i in range(2000)]
    assert numbers == [conformal.uniform_of(f"text {i}") for i in range(2000)]
    assert 0 <= min(numbers) and max(numbers) < 1
    assert np.mean(numbers) == pytest.approx(0.5, abs=0.03)


def test_refuses():
    probs, labels = np.array([[0.9, 0.1]]), np.array([0])
    for coverage in (0, 1, -1, math.nan):
        with pytest.raises(UserError, match="expected above 0 and below 1"):
            conformal.fit(probs, labels, coverage)
    with pytest.raises(
        UserError, match="sets is 'best'; expected one of thr, aps, raps"
    ):
        conformal.fit(probs, labels, 0.9, "best")
    with pytest.raises(UserError, match="no labelled examples"):
        conformal.fit(probs[:0], labels[:0], 0.9)
