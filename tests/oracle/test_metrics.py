"""Each metric is what a package computes, or a plain loop from the paper's equation.

The loops (`oracle/loops.py`) share no code with ours. Packages: netcal,
uncertainty-calibration, torchmetrics (kept from confidence 1, its issue 3510), relplot,
scikit-learn.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import torch
from oracle.loops import (
    BINS,
    CASES,
    drawn,
    gap,
    loops,
    mean_gap,
    of_class,
    rank_bins,
    top,
    width_bins,
)

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.metrics import consistency

with warnings.catch_warnings():  # theirs at import, of their own dependencies
    warnings.simplefilter("ignore")
    import calibration as uncertainty_calibration
    import netcal.metrics
    import relplot
    import torchmetrics.functional.classification


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.filterwarnings("ignore")  # labels of probability 0 are logged, not wrong
def test_metrics_are_the_loops(case):
    got, wanted = metrics.compute_all(*case), loops(*case)
    wrong = {k: (got[k], v) for k, v in wanted.items() if not abs(got[k] - v) <= 1e-9}
    assert wrong == {}
    rest = {"n", "num_classes", "auroc_error", "smooth_ece", "kernel_ce"}
    rest |= {"ece_noise_floor", "consistency_p"}
    assert {k for k in got if "reference" not in k} == set(wanted) | rest


def test_nixons_plain_mean_over_ranges():
    probs, labels = drawn(600)
    ranges = [
        g for c in range(3) for g in rank_bins(of_class(probs, labels, c)) if len(g)
    ]
    wanted = sum(gap(g) for g in ranges) / (3 * BINS)
    assert metrics.ace_per_class(probs, labels) == pytest.approx(wanted, abs=1e-12)


def test_ties_are_the_mean_over_all_their_orders():
    conf = [0.9, 0.7, 0.7, 0.7, 0.6, 0.6]
    hit = [1, 0, 1, 0, 1, 0]
    probs = np.array([[c, 1 - c] for c in conf])
    areas = []
    for order in itertools.permutations(range(6)):
        if all(conf[a] >= conf[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum([1 - hit[i] for i in order])
            areas.append(np.mean(wrong / np.arange(1, 7)))
    got = metrics.aurc(probs, 1 - np.array(hit))
    assert got == pytest.approx(np.mean(areas), abs=1e-12)


def test_scikit_learn(case):
    probs, labels = case
    conf, hit = map(np.array, zip(*top(probs, labels), strict=True))
    if 0 < hit.mean() < 1:
        wanted = sklearn.metrics.roc_auc_score(hit, conf)
        assert metrics.auroc_error(probs, labels) == pytest.approx(wanted, abs=1e-12)
        a = hit.mean()
        area = (1 - wanted) * a * (1 - a) + (1 - a) ** 2 / 2
        assert metrics.augrc(probs, labels) == pytest.approx(area, abs=1e-12)
    else:
        assert metrics.auroc_error(probs, labels) == 0.5


def test_scikit_learns_scores(case):
    probs, labels = case
    classes = list(range(probs.shape[1]))
    one = {"labels": classes}
    wanted = sklearn.metrics.accuracy_score(labels, probs.argmax(axis=1))
    assert metrics.accuracy(probs, labels) == pytest.approx(wanted, abs=1e-12)
    wanted = sklearn.metrics.brier_score_loss(labels, probs, **one, scale_by_half=False)
    assert metrics.brier(probs, labels) == pytest.approx(wanted, abs=1e-12)
    # scikit-learn cuts probabilities at 2e-16 and divides by their sum, we do neither
    possible = probs[np.arange(len(labels)), labels] > 0
    rows = probs[possible], labels[possible]
    wanted = sklearn.metrics.log_loss(rows[1], rows[0], **one)
    assert metrics.nll(*rows) == pytest.approx(wanted, abs=1e-9)


def test_netcal():
    probs, labels = drawn()
    for name, measure in {
        "ece": netcal.metrics.ECE(BINS),
        "mce": netcal.metrics.MCE(BINS),
        "ece_mass": netcal.metrics.ECE(BINS, equal_intervals=False),
        "ece_mass_max": netcal.metrics.MCE(BINS, equal_intervals=False),
    }.items():
        wanted = measure.measure(probs, labels)
        assert getattr(metrics, name)(probs, labels) == pytest.approx(wanted, abs=1e-6)


def test_uncertainty_calibration():
    probs, labels = drawn()
    cal = uncertainty_calibration
    top_label = {"num_bins": BINS, "mode": "top-label"}
    marginal = {"num_bins": BINS, "mode": "marginal"}
    mass = {"p": 2, "binning_scheme": cal.utils.get_equal_bins}
    wanted = {
        "ece": cal.get_ece(probs, labels, **top_label),
        "ece_mass": cal.get_ece_em(probs, labels, **top_label),
        "classwise_ece": cal.get_ece(probs, labels, **marginal),
        "ace_per_class": cal.get_ece_em(probs, labels, **marginal),
        "ece_mass_l2": cal.lower_bound_scaling_ce(
            probs, labels, debias=False, **mass, **top_label
        ),
        "ece_debiased": cal.lower_bound_scaling_ce(
            probs, labels, debias=True, **mass, **top_label
        ),
    }
    for name, value in wanted.items():
        assert getattr(metrics, name)(probs, labels) == pytest.approx(value, abs=1e-9)


def test_torchmetrics():
    probs, labels = drawn()
    error = torchmetrics.functional.classification.multiclass_calibration_error
    rows = torch.tensor(probs), torch.tensor(labels)
    for name, norm in {"ece": "l1", "ece_l2": "l2", "mce": "max"}.items():
        wanted = float(error(*rows, num_classes=3, n_bins=BINS, norm=norm))
        assert getattr(metrics, name)(probs, labels) == pytest.approx(wanted, abs=1e-6)


def smoothed(entries, sigma, points=2000):
    """Integral of the smoothed residuals: midpoint rule, images for reflection."""
    conf, hit = map(np.array, zip(*entries, strict=True))
    total = 0.0
    for j in range(points):
        t, value = (j + 0.5) / points, 0.0
        for image in range(-4, 5):
            for at in (conf + 2 * image, 2 * image - conf):
                value += np.sum((hit - conf) * np.exp(-(((t - at) / sigma) ** 2) / 2))
        total += abs(value) / (len(conf) * sigma * math.sqrt(2 * math.pi))
    return total / points


@pytest.mark.parametrize("n", [1, 2, 40, 600])
def test_smooth_error_is_the_fixed_point_of_the_integral(n):
    probs, labels = drawn(n)
    got = float(metrics.smooth_ece(probs, labels))
    entries = top(probs, labels)
    # the error falls as sigma grows: the fixed point lies where the sign changes
    assert smoothed(entries, got) == pytest.approx(got, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_relplot():
    probs, labels = drawn(2000)
    conf, hit = map(np.array, zip(*top(probs, labels), strict=True))
    got = metrics.smooth_ece(probs, labels)
    assert got == pytest.approx(relplot.smECE(conf, hit), abs=1e-3)


def pair(probs, labels, i, j):
    e_i, e_j = np.eye(probs.shape[1])[[labels[i], labels[j]]]
    distance = np.abs(probs[i] - probs[j]).sum() / 2
    return math.exp(-distance / 0.2) * ((e_i - probs[i]) @ (e_j - probs[j]))


def test_kernel_error_is_the_mean_over_pairs():
    probs, labels = drawn(50)
    every = [pair(probs, labels, i, j) for i in range(50) for j in range(i)]
    got = metrics.kernel_ce(probs, labels, block=50)
    assert got == pytest.approx(np.mean(every), abs=1e-12)
    # blocks of 16, 16, 16 and 2 examples in the order of one stream of numbers
    order = np.argsort(np.random.default_rng(0).random(50, np.float32))
    blocks = [order[k : k + 16] for k in range(0, 50, 16)]
    some = [
        pair(probs, labels, *two)
        for block in blocks
        for two in itertools.combinations(block, 2)
    ]
    got = metrics.kernel_ce(probs, labels)
    assert got == pytest.approx(np.mean(some), abs=1e-12)
    assert metrics.kernel_ce(probs[:1], labels[:1]) == 0


def test_consistency_is_the_sum_over_all_labels():
    conf = np.array([0.55, 0.62, 0.71, 0.74, 0.83, 0.91, 0.97, 0.99])
    probs = np.stack([conf, 1 - conf], axis=1)
    labels = np.array([0, 0, 1, 0, 1, 0, 0, 0])
    observed, floor, tail = mean_gap(width_bins(top(probs, labels))), 0.0, 0.0
    for hits in itertools.product((0.0, 1.0), repeat=8):
        chance = math.prod(c if h else 1 - c for c, h in zip(conf, hits, strict=True))
        error = mean_gap(width_bins(list(zip(conf.tolist(), hits, strict=True))))
        floor += chance * error
        tail += chance * (error >= observed - 1e-12)
    got = consistency.check(probs, labels, replicas=200_000)
    # four standard errors of 200,000 draws
    assert got.p == pytest.approx(tail, abs=4 * math.sqrt(tail * (1 - tail) / 2e5))
    assert got.noise_floor == pytest.approx(floor, abs=4 * 0.1 / math.sqrt(2e5))


def test_cells_of_many_examples_draw_the_same_errors(monkeypatch):
    probs, labels = drawn(4096)
    exact = consistency.check(probs, labels, replicas=4000)
    monkeypatch.setattr(consistency, "CELLS", 512)
    cells = consistency.check(probs, labels, replicas=4000, seed=1)
    assert cells.noise_floor == pytest.approx(exact.noise_floor, rel=0.02)


def test_distances_to_rater_shares():
    probs, _ = drawn(100)
    soft, _ = drawn(100, seed=3)
    soft[::7] = [0, 1, 0]
    got = metrics.compute_all(probs, soft.argmax(axis=1), soft=soft)
    kl = scipy.special.rel_entr(soft, probs).sum(axis=1).mean()
    assert got["soft_kl"] == pytest.approx(kl, abs=1e-12)
    rows = list(zip(probs.tolist(), soft.tolist(), strict=True))
    tv = sum(sum(max(p - s, 0) for p, s in zip(*two, strict=True)) for two in rows)
    assert got["soft_tv"] == pytest.approx(tv / 100, abs=1e-12)
    square = sum(sum((p - s) ** 2 for p, s in zip(*two, strict=True)) for two in rows)
    assert got["soft_brier"] == pytest.approx(square / 100, abs=1e-12)
