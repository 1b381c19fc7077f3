"""Plain float64 loops from the papers' equations; they share no code with ours."""

import itertools
import math

import numpy as np

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
