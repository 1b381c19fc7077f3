"""Each metric is what a package computes, or a plain loop from the paper's equation.

The loops share no code with ours. Packages: netcal, uncertainty-calibration,
torchmetrics (kept from confidence 1, its issue 3510), relplot, scikit-learn.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import torch

from hypelora_jax.calibration import consistency, metrics

with warnings.catch_warnings():  # theirs at import, of their own dependencies
    warnings.simplefilter("ignore")
    import calibration as uncertainty_calibration
    import netcal.metrics
    import relplot
    import torchmetrics.functional.classification

BINS = 10


def drawn(n=600, classes=3, seed=0):
    chance = np.random.default_rng(seed)
    probs = chance.dirichlet(np.full(classes, 0.7), n)
    wrong = chance.random(n) < 0.3
    labels = (chance.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1)
    return probs, np.where(wrong, chance.integers(0, classes, n), labels)


def rounded(n=203):
    """Many ties, confidences of exactly 0 and 1, and a class that never occurs."""
    probs, labels = drawn(n, 4, seed=1)
    tenths = np.floor(probs * 10).astype(int)
    tenths[np.arange(n), probs.argmax(axis=1)] += 10 - tenths.sum(axis=1)
    tenths[::20] = [10, 0, 0, 0]
    return tenths / 10, np.minimum(labels, 2)


CASES = {"drawn": drawn(), "rounded": rounded(), "one": (drawn(1)[0], np.array([2]))}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def top(probs, labels):
    """(confidence, hit) of each example, the first class winning a tie."""
    out = []
    for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
        best = max(row)
        out.append((best, 1.0 if row.index(best) == label else 0.0))
    return out


def width_bins(entries, bins=BINS):
    """Entries of each bin (lo, hi], the first one closed."""
    edges = np.linspace(0, 1, bins + 1).tolist()
    out = [[] for _ in range(bins)]
    for conf, hit in entries:
        for m in range(bins):
            if conf <= edges[m + 1]:
                out[m].append((conf, hit))
                break
    return out


def mass_bins(entries, bins=BINS):
    """Entries cut after rank ceil(k n / bins), equal confidences kept together."""
    entries = sorted(entries, key=lambda e: e[0])
    n, ends = len(entries), []
    for k in range(1, bins):
        end = -(-k * n // bins)
        while end < n and entries[end][0] == entries[end - 1][0]:
            end += 1
        ends.append(end)
    bounds = [0, *ends, n]
    return [entries[a:b] for a, b in itertools.pairwise(bounds)]


def rank_bins(entries, bins=BINS):
    entries = sorted(entries, key=lambda e: e[0])
    size = len(entries) // bins
    return [
        entries[m * size : (m + 1) * size if m < bins - 1 else None]
        for m in range(bins)
    ]


def gap(group):
    return abs(sum(c for c, _ in group) - sum(h for _, h in group)) / len(group)


def mean_gap(groups, power=1):
    n = sum(map(len, groups))
    return (sum(len(g) / n * gap(g) ** power for g in groups if g)) ** (1 / power)


def largest(groups, least=1):
    return max([gap(g) for g in groups if len(g) >= least], default=0.0)


def debiased(groups):
    n, out = sum(map(len, groups)), 0.0
    for g in groups:
        if len(g) > 1:
            rate = sum(h for _, h in g) / len(g)
            out += len(g) / n * (gap(g) ** 2 - rate * (1 - rate) / (len(g) - 1))
    return math.sqrt(max(out, 0.0))


def of_class(probs, labels, c):
    return [(row[c], float(y == c)) for row, y in zip(probs, labels, strict=True)]


def of_all(probs, labels):
    return [
        (p, float(y == c))
        for row, y in zip(probs, labels, strict=True)
        for c, p in enumerate(row)
    ]


def decomposition(probs, labels):
    n, parts = len(labels), [0.0, 0.0, 0.0]
    for c in range(probs.shape[1]):
        base = sum(y == c for y in labels) / n
        parts[2] += base * (1 - base)
        for g in width_bins(of_class(probs, labels, c)):
            if g:
                rate = sum(h for _, h in g) / len(g)
                parts[0] += len(g) / n * gap(g) ** 2
                parts[1] += len(g) / n * (rate - base) ** 2
    return parts


def expected_errors(entries):
    """Expected errors among the k most confident, k = 0 .. n, over orders of ties."""
    out, by_conf = [0.0], {}
    for conf, hit in entries:
        by_conf.setdefault(conf, []).append(1 - hit)
    for conf in sorted(by_conf, reverse=True):
        wrong, start = by_conf[conf], out[-1]
        rate = sum(wrong) / len(wrong)
        out += [start + rate * j for j in range(1, len(wrong) + 1)]
    return out


def selective(entries):
    errors, n = expected_errors(entries), len(entries)
    return {
        "aurc": sum(errors[k] / k for k in range(1, n + 1)) / n,
        "augrc": sum((a + b) / 2 for a, b in itertools.pairwise(errors)) / n**2,
        **{
            f"risk_at_coverage_{c}": errors[k] / k
            for c in (0.5, 0.8, 0.9)
            for k in [math.ceil(round(c * n, 9))]
        },
    }


def loops(probs, labels):
    entries, classes = top(probs, labels), range(probs.shape[1])
    by_class = [of_class(probs, labels, c) for c in classes]
    rel, res, unc = decomposition(probs, labels)
    likelihoods = [row[y] for row, y in zip(probs, labels, strict=True)]
    squares = [
        sum((p - (c == y)) ** 2 for c, p in enumerate(row))
        for row, y in zip(probs, labels, strict=True)
    ]
    n = len(labels)
    return {
        "accuracy": sum(h for _, h in entries) / n,
        "nll": sum(-math.log(max(p, 2.2250738585072014e-308)) for p in likelihoods) / n,
        "brier": sum(squares) / n,
        "brier_reliability": rel,
        "brier_resolution": res,
        "brier_uncertainty": unc,
        "brier_within_bins": sum(squares) / n - rel + res - unc,
        "ece": mean_gap(width_bins(entries)),
        "ece_l2": mean_gap(width_bins(entries), 2),
        "mce": largest(width_bins(entries)),
        "mce_min_10": largest(width_bins(entries), 10),
        "classwise_ece": np.mean([mean_gap(width_bins(e)) for e in by_class]),
        "ece_mass": mean_gap(mass_bins(entries)),
        "ece_mass_l2": mean_gap(mass_bins(entries), 2),
        "ece_mass_max": largest(mass_bins(entries)),
        "ece_debiased": debiased(mass_bins(entries)),
        "ace": mean_gap(rank_bins(entries)),
        "ace_per_class": np.mean([mean_gap(mass_bins(e)) for e in by_class]),
        **{
            f"tace_{name}": mean_gap(
                rank_bins([e for e in of_all(probs, labels) if e[0] >= eps])
            )
            for name, eps in (("0.01", 0.01), ("0.001", 0.001), ("0.0001", 0.0001))
        },
        **selective(entries),
    }


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
