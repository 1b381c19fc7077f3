import logging
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypelora_jax.calibration import metrics

# METHOD section D: probabilities, labels, and what the reference computes of them
P = np.array(
    [
        [0.70, 0.20, 0.10],
        [0.05, 0.90, 0.05],
        [0.30, 0.30, 0.40],
        [0.98, 0.015, 0.005],
        [0.25, 0.55, 0.20],
        [0.10, 0.15, 0.75],
        [0.60, 0.35, 0.05],
        [0.333, 0.334, 0.333],
        [0.02, 0.03, 0.95],
        [0.51, 0.48, 0.01],
    ]
)
Y = np.array([0, 1, 0, 0, 2, 2, 1, 1, 2, 0])
REFERENCE = {
    10: {
        "ece": 0.1646,
        "classwise_ece": 0.219066666667,
        "mce": 0.3,
        "ace": 0.3426,
        "tace_0.01_reference": 0.341206896552,
        "tace_0.01": 0.095206896552,
        "brier": 0.3920384,
    },
    3: {
        "ece": 0.1114,
        "classwise_ece": 0.083866666667,
        "mce": 0.144,
        "ace": 0.2026,
        "tace_0.01_reference": 0.280862068966,
        "tace_0.01": 0.041206896552,
        "brier": 0.3920384,
    },
}
TACE = {
    "tace": partial(metrics.thresholded_ace, eps=0.01),
    "tace_reference": partial(metrics.thresholded_ace, eps=0.01, pairing="reference"),
}
SYMMETRIC = {
    name: getattr(metrics, name)
    for name in ("accuracy", "nll", "brier", "ece", "classwise_ece", "mce", "ace")
} | {"tace": TACE["tace"]}
SYMMETRIC |= {
    name: getattr(metrics, name)
    for name in (
        *("ece_l2", "ece_mass", "ece_mass_l2", "ece_mass_max", "ece_debiased"),
        *("ace_per_class", "smooth_ece", "aurc", "augrc", "auroc_error"),
    )
} | {
    "mce_min_10": partial(metrics.mce, min_count=10),
    "risk_at_coverage_0.8": partial(metrics.risk_at_coverage, coverage=0.8),
}
# depend on the order of the examples
ALL = SYMMETRIC | {
    "tace_reference": TACE["tace_reference"],
    "kernel_ce": metrics.kernel_ce,
}
NEW = {
    *("mce_min_10", "ece_l2", "ece_mass", "ece_mass_l2", "ece_mass_max"),
    *("ece_debiased", "ace_per_class", "smooth_ece", "kernel_ce"),
    *("brier_reliability", "brier_resolution", "brier_uncertainty"),
    *("brier_within_bins", "aurc", "augrc", "auroc_error", "ece_noise_floor"),
    *(f"risk_at_coverage_{c}" for c in (0.5, 0.8, 0.9)),
    "consistency_p",
}


def _random(n=200, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    probs = draw.dirichlet(np.full(classes, 0.5), size=n)
    return probs, draw.integers(0, classes, size=n)


@pytest.mark.parametrize("bins", sorted(REFERENCE))
def test_reference_vector(bins):
    got = metrics.compute_all(P, Y, bins)
    for name, wanted in REFERENCE[bins].items():
        assert got[name] == pytest.approx(wanted, abs=1e-12), name


def test_keys_and_types_of_compute_all():
    got = metrics.compute_all(P.astype(np.float32), Y)
    tace = [f"tace_{eps}" for eps in ("0.01", "0.001", "0.0001")]
    names = "n num_classes accuracy nll brier ece classwise_ece mce ace".split()
    first = [*names, *tace, *(f"{name}_reference" for name in tace)]
    assert list(got)[: len(first)] == first  # programs outside rely on them
    assert set(list(got)[len(first) :]) == NEW
    assert (got["n"], got["num_classes"]) == (10, 3)
    assert all(type(got[name]) is float for name in list(got)[2:])


def test_compute_all_is_float64_whatever_comes_in():
    probs = _random()[0].astype(np.float32)
    labels = _random()[1]
    wide = metrics.compute_all(probs.astype(np.float64), labels)
    assert metrics.compute_all(probs, labels) == wide


def test_accuracy_nll_and_brier_by_hand():
    probs, labels = np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([1, 0])
    assert metrics.accuracy(probs, labels) == 0.5  # a tie goes to the first class
    assert metrics.nll(probs, labels) == pytest.approx(math.log(8) / 2)
    assert metrics.brier(probs, labels) == pytest.approx((2 * 0.75**2 + 0.5) / 2)


@pytest.mark.parametrize("name", ALL)
def test_padding_is_dropping_the_row(name):
    probs, labels = _random()
    weight = np.random.default_rng(1).integers(0, 2, size=len(labels))
    dropped = ALL[name](probs[weight > 0], labels[weight > 0])
    probs[weight == 0], labels[weight == 0] = np.nan, -1
    assert ALL[name](probs, labels, weight_N=weight) == pytest.approx(
        dropped, abs=1e-14
    )


@pytest.mark.parametrize("name", SYMMETRIC)
def test_a_weight_is_how_often_a_row_stands_there(name):
    probs, labels = _random()
    probs = np.round(probs, 2)  # ties
    weight = np.random.default_rng(1).integers(0, 4, size=len(labels))
    rows = np.repeat(np.arange(len(labels)), weight)
    wanted = SYMMETRIC[name](probs[rows], labels[rows])
    got = SYMMETRIC[name](probs, labels, weight_N=weight)
    assert got == pytest.approx(wanted, abs=1e-12)


def test_padding_leaves_the_reliability_diagram():
    probs, labels = P.copy(), Y.copy()
    probs[::3], labels[::3] = np.nan, -1
    weight = np.arange(10) % 3 > 0
    wanted = metrics.reliability(P[weight], Y[weight])
    np.testing.assert_allclose(metrics.reliability(probs, labels, weight), wanted)


@pytest.mark.parametrize("name", ALL)
def test_nothing_left_is_finite(name):
    nothing = 0.5 if name == "auroc_error" else 0
    assert ALL[name](P, Y, weight_N=np.zeros(10)) == nothing


def test_order_of_examples_matters_to_the_reference_pairing_alone():
    probs, labels = _random()
    order = np.argsort(labels, kind="stable")
    for name, metric in SYMMETRIC.items():
        moved = metric(probs[order], labels[order])
        assert moved == pytest.approx(metric(probs, labels), abs=1e-12), name
    wrong = TACE["tace_reference"]
    assert abs(wrong(probs[order], labels[order]) - wrong(probs, labels)) > 0.01


def test_order_of_classes_does_not_matter():
    probs, labels = _random()
    order = np.array([2, 0, 1])
    for name, metric in SYMMETRIC.items():
        moved = metric(probs[:, order], np.argsort(order)[labels])
        assert moved == pytest.approx(metric(probs, labels), abs=1e-12), name


def test_certain_and_right_or_wrong():
    sure = np.eye(2)[[0, 1, 0, 1]]
    for name in ("ece", "classwise_ece", "mce", "ace", "brier", "nll", "tace"):
        assert SYMMETRIC[name](sure, np.array([0, 1, 0, 1])) == 0, name
    wrong = np.array([1, 0, 1, 0])
    for name in ("ece", "classwise_ece", "mce", "ace", "tace"):
        assert SYMMETRIC[name](sure, wrong) == 1, name
    assert metrics.brier(sure, wrong) == 2
    assert metrics.nll(sure, wrong) == pytest.approx(708.396, abs=1e-3)


def test_a_label_of_probability_zero_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        metrics.compute_all(np.eye(2), np.array([0, 0]))
    assert "1 of 2 labels have probability 0" in caplog.text


def test_one_example_and_fewer_than_bins():
    probs, labels = np.array([[0.7, 0.3]]), np.array([0])
    for name in ("ece", "mce", "ace"):
        assert SYMMETRIC[name](probs, labels) == pytest.approx(0.3)
    # fewer than bins: one group, |mean confidence - accuracy|
    probs, labels = P[:4], Y[:4]
    gap = abs(probs.max(axis=1).mean() - 0.75)
    assert metrics.ace(probs, labels) == pytest.approx(gap)


def test_an_absent_class_counts_with_its_probability():
    probs = np.array([[0.6, 0.3, 0.1]] * 4)
    # gaps of the three classes: |.6 - 1|, |.3 - 0|, |.1 - 0|
    got = metrics.classwise_ece(probs, np.zeros(4, int))
    assert got == pytest.approx((0.4 + 0.3 + 0.1) / 3)


def test_equal_confidences_are_in_one_bin_of_mass():
    # ranks 1 to 4: the bound after rank 2 would cut the three of .75, so it moves up
    probs = np.array([[0.5, 0.5], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])
    got = metrics.ece_mass(probs, np.array([0, 0, 1, 1]), bins=2)
    assert got == pytest.approx(abs(2.75 - 2) / 4)


def test_selective_prediction_by_hand():
    # in order of confidence: right, wrong, right, right
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    got = metrics.aurc(probs, labels)
    assert got == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert metrics.augrc(probs, labels) == pytest.approx((0.5 + 1 + 1) / 16)
    assert metrics.auroc_error(probs, labels) == pytest.approx(1 / 3)
    for coverage, wanted in ((0.25, 0), (0.5, 1 / 2), (0.6, 1 / 3), (1, 1 / 4)):
        got = metrics.risk_at_coverage(probs, labels, coverage)
        assert got == pytest.approx(wanted), coverage


def test_smooth_error_of_one_example_is_its_gap():
    assert metrics.smooth_ece(np.array([[0.7, 0.3]]), np.array([0])) == pytest.approx(
        0.3, abs=1e-6
    )


def test_no_probability_above_the_threshold():
    assert metrics.thresholded_ace(P, Y, eps=0.99) == 0


def test_bins_are_closed_above():
    # 0.8 falls into (0.7, 0.8], beside 0.75: gaps 0.2 and -0.25 cancel but for 0.05
    probs = np.array([[0.8, 0.2], [0.25, 0.75]])
    edge = np.linspace(0, 1, 11)[8]
    assert probs[0, 0] == edge
    got = metrics.ece(probs, np.array([0, 0]))
    assert got == pytest.approx(abs(0.8 + 0.75 - 1) / 2)


def test_reliability_sums_to_ece():
    probs, labels = _random()
    conf, hit, count = metrics.reliability(probs, labels)
    assert count.sum() == len(labels)
    gap = np.sum(np.abs(conf - hit) * count) / count.sum()
    assert gap == pytest.approx(metrics.ece(probs, labels), abs=1e-14)


def test_unknown_pairing():
    with pytest.raises(ValueError, match="pairing is 'wrong'; expected correct or"):
        metrics.thresholded_ace(P, Y, 0.01, pairing="wrong")


def _jitted():
    return jax.jit(
        lambda *rows: {k: f(*rows[:2], weight_N=rows[2]) for k, f in ALL.items()}
    )


@pytest.mark.parametrize(("x64", "bar"), [(False, 1e-6), (True, 1e-14)])
def test_jit_equals_numpy(x64, bar):
    probs, labels = _random(60, 4)
    weight = np.arange(60) % 5 > 0
    if not x64:  # the same rounded numbers on both sides, away from bin edges
        probs = probs.astype(np.float32)
    with jax.enable_x64(x64):
        got = _jitted()(jnp.asarray(probs), jnp.asarray(labels), jnp.asarray(weight))
        for name, metric in ALL.items():
            wanted = metric(probs, labels, weight_N=weight)
            assert got[name].dtype == probs.dtype, name
            assert abs(float(got[name]) - wanted) <= bar * max(1, wanted), name
