"""Nominal intervals and p-values against simulated truth: docs/calibration.md."""

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from hypelora_jax.calibration import bootstrap, metrics, replicas
from hypelora_jax.calibration.metrics import consistency

N, NAMES = 1000, ("accuracy", "nll", "brier", "ece")


def population(chance, n, sharpen):
    """Predicted and true probabilities: logits times a factor a class, and as drawn."""
    logits = chance.normal(size=(n, 3)) * 1.5
    true = scipy.special.softmax(logits, axis=1)
    return scipy.special.softmax(logits * sharpen, axis=1), true


def drawn(chance, true):
    return (chance.random((len(true), 1)) > np.cumsum(true, axis=1)).sum(axis=1)


def truth(sharpen, bins=10):
    """Expectations over a million inputs; labels are integrated out."""
    p, q = population(np.random.default_rng(10**6), 10**6, sharpen)
    best, at = p.argmax(axis=1), np.arange(len(p))
    conf, hit = p[at, best], q[at, best]
    group = np.ceil(conf * bins).astype(int)
    return {
        "accuracy": hit.mean(),
        "nll": -np.sum(q * np.log(p), axis=1).mean(),
        "brier": np.sum(p**2 - 2 * p * q + q, axis=1).mean(),
        "ece": np.abs(np.bincount(group, conf - hit)).sum() / len(p),
    }


def covered(sharpen, sets, number):
    """Share of 95 % intervals of `sets` sets that hold the truth, by metric.

    The resamplings know nothing of the data, so all sets share them: that leaves one
    matrix product a set to do. "percentile" and "reflected" are intervals of ECE that
    we do not use, for docs/calibration.md.
    """
    wanted, chance = truth(sharpen), np.random.default_rng(sets)
    keys = jax.random.split(jax.random.key(0), number)
    weight_RN = jax.vmap(replicas.counts, (0, None))(keys, N)
    by_sums = jax.jit(lambda data: replicas.by_sums(data, weight_RN, 10))
    held = dict.fromkeys((*NAMES, "percentile", "reflected"), 0)
    for _ in range(sets):
        p, q = population(chance, N, sharpen)
        y = drawn(chance, q)
        got = by_sums(replicas.prepare(p, y, None, NAMES, 10))
        for name in NAMES:
            value = float(getattr(metrics, name)(p, y))
            at = bootstrap.interval(name, value, np.asarray(got[name], np.float64))
            held[name] += at["low"] <= wanted[name] <= at["high"]
        low, high = np.quantile(np.asarray(got["ece"]), (0.025, 0.975))
        held["percentile"] += low <= wanted["ece"] <= high
        held["reflected"] += low <= 2 * value - wanted["ece"] <= high
    return wanted["ece"], {name: count / sets for name, count in held.items()}


def p_values(sets):
    chance, out = np.random.default_rng(0), []
    for i in range(sets):
        p, _ = population(chance, N, 1.0)
        out.append(consistency.check(p, drawn(chance, p), seed=i).p)
    return out


@pytest.mark.soak
@pytest.mark.parametrize("sharpen", [1.3, 1.6, 2.5, 0.6])
def test_nominal_intervals_cover(sharpen):
    true_ece, share = covered(sharpen, sets=1000, number=1000)
    print(f"sharpen {sharpen} true ece {true_ece:.4f}", share)
    assert true_ece >= 0.05
    for name in ("accuracy", "nll", "brier"):
        assert 0.93 <= share[name] <= 0.97, (name, share)
    assert 0.90 <= share["ece"] <= 0.98, share


@pytest.mark.soak
def test_p_values_of_calibrated_data_are_uniform():
    got = scipy.stats.kstest(p_values(1000), "uniform").pvalue
    print(f"Kolmogorov-Smirnov p {got:.3f}")
    assert got > 0.01


def test_intervals_cover_short():
    true_ece, share = covered(1.6, sets=100, number=1000)
    assert true_ece >= 0.05
    # 100 sets at 95 %: fewer than 85 is one chance in ten thousand
    assert min(share[name] for name in NAMES) >= 0.85, share


def test_p_values_short():
    p = p_values(100)
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3
    assert min(p) < 0.1 and max(p) > 0.9


def test_p_of_an_overconfident_model_is_the_smallest_there_is():
    chance = np.random.default_rng(0)
    p, q = population(chance, N, 2.5)
    got = consistency.check(p, drawn(chance, q))
    assert got.p == 1 / 1000
    assert 0.01 < got.noise_floor < 0.04
