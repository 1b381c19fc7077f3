"""Adaptive calibration error over all probabilities above a threshold.

Unlike the errors of the predicted class, these count the probability of every class of
every example, if it is at least `eps`.
"""

import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import binned, equal_mass, ranking
from hypelora_jax.calibration.metrics.ranking import Curve, Ranking

THRESHOLDS = (0.01, 0.001, 0.0001)


def thresholded_ace(
    probs_NY: Array,
    label_N: Array,
    eps: float,
    bins: int = 10,
    pairing: str = "correct",
    weight_N: Array | None = None,
) -> Array:
    """Adaptive calibration error over all probabilities of at least `eps`, 0 to 1.

    Args:
      probs_NY: probabilities.
      label_N: classes.
      eps: smallest probability that counts, above 0. If none counts, the error is 0.
      bins: groups of equal mass, as in `ace`, over all classes together.
      pairing: "correct", or "reference": entry j of the row-major probabilities is
        compared with example j % N and class j // N, a mistake of the reference
        (METHOD A.9, 1). That number depends on the order of the examples.
      weight_N: 0 for padding rows.

    Raises:
      ValueError: `pairing` is neither of the two.
    """
    if pairing not in ("correct", "reference"):
        raise ValueError(f"pairing is {pairing!r}; expected correct or reference")
    rows = arrays.clean(probs_NY, label_N, weight_N)[1:]
    entries, weight_N = pairings(*rows)[pairing]
    return above(entries, ranking.curve(entries, weight_N), eps, bins)


def pairings(
    probs_NY: Array, label_N: Array, weight_N: Array
) -> dict[str, tuple[Ranking, Array]]:
    """Rank all probabilities under each pairing, and give the weights of the rows.

    Both pairings rank the same probabilities, so these are sorted once.
    """
    xp = arrays.namespace(probs_NY)
    by_N = xp.argsort(weight_N <= 0, stable=True)  # padding last, so that j % n works
    probs_NY, label_N, weight_N = probs_NY[by_N], label_N[by_N], weight_N[by_N]
    n, num_classes = probs_NY.shape
    some = xp.maximum(xp.sum(weight_N > 0), 1)
    j_NY = xp.arange(n * num_classes).reshape(n, num_classes)
    hits = {
        "correct": arrays.onehot(label_N, num_classes),
        "reference": label_N[j_NY % some] == j_NY // some,
    }
    flat_E = probs_NY.reshape(-1)
    sort_E = xp.argsort(flat_E, stable=True)
    row_E = xp.repeat(xp.arange(n), num_classes)

    def paired(hit_NY: Array) -> Ranking:
        return ranking.order(
            flat_E, hit_NY.reshape(-1).astype(flat_E.dtype), row_E, sort_E
        )

    return {key: (paired(hit_NY), weight_N) for key, hit_NY in hits.items()}


def above(entries: Ranking, running: Curve, eps: float, bins: int) -> Array:
    """Error over groups of equal mass among the entries of at least `eps`."""
    xp = arrays.namespace(entries.conf)
    start = xp.searchsorted(
        entries.conf, xp.asarray(eps, entries.conf.dtype), side="left"
    )
    return binned.l1(equal_mass.by_rank(running, bins, start))


def compute(p: np.ndarray, y: np.ndarray, bins: int) -> dict[str, Array]:
    """Compute the error by name, for each threshold under both pairings."""
    out = {}
    for pairing, (entries, weight_N) in pairings(p, y, np.ones(len(y))).items():
        running = ranking.curve(entries, weight_N)
        suffix = "" if pairing == "correct" else f"_{pairing}"
        for eps in THRESHOLDS:
            out[name(eps) + suffix] = above(entries, running, eps, bins)
    return out


def name(eps: float) -> str:
    """Name of the error at a threshold: tace_0.01, tace_0.0001 (not tace_1e-04)."""
    return f"tace_{np.format_float_positional(eps)}"
