"""Calibration metrics of probabilities, written once for numpy and jax arrays.

The arrays decide where and how precisely a metric is computed: numpy float64 is what a
user reads (`compute_all`), jax float32 is for monitoring inside jit, with `bins`, `eps`
and `pairing` static. Definitions: docs of each function; bins are (lo, hi] with edges
linspace(0, 1, bins + 1), the first one closed; groups of equal mass are cut from a
stable ascending sort. `weight_N` is 1 for examples and 0 for padding rows, which are as
good as absent whatever they hold; with nothing left a metric is 0.
"""

import logging
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array: the namespace follows `probs_NY`

TACE_EPS = (0.01, 0.001, 0.0001)


def namespace(x: Array) -> ModuleType:
    """Module that computes on `x`: jax.numpy for jax arrays and tracers, else numpy."""
    return jnp if isinstance(x, jax.Array) else np


def _clean(probs_NY: Array, label_N: Array, weight_N: Array | None):
    """Namespace, probabilities, labels and mask; padding rows hold zeros."""
    xp = namespace(probs_NY)
    probs_NY = xp.asarray(probs_NY)
    probs_NY = probs_NY.astype(xp.promote_types(probs_NY.dtype, xp.float32))
    label_N = xp.asarray(label_N)
    if weight_N is None:
        return xp, probs_NY, label_N, xp.ones(label_N.shape, bool)
    mask_N = xp.asarray(weight_N) > 0
    probs_NY = xp.where(mask_N[:, None], probs_NY, xp.zeros_like(probs_NY))
    return xp, probs_NY, xp.where(mask_N, label_N, xp.zeros_like(label_N)), mask_N


def _onehot(xp: ModuleType, label_N: Array, num_classes: int) -> Array:
    return label_N[:, None] == xp.arange(num_classes)[None, :]


def _top(xp: ModuleType, probs_NY: Array, label_N: Array) -> tuple[Array, Array]:
    """Confidence and whether it was right; the first class wins a tie."""
    hit_N = xp.argmax(probs_NY, axis=1) == label_N
    return xp.max(probs_NY, axis=1), hit_N


def _sums(xp: ModuleType, group_N: Array, x_N: Array, bins: int) -> Array:
    if xp is np:
        return np.bincount(group_N, x_N, minlength=bins).astype(x_N.dtype)
    return jnp.bincount(group_N, x_N, length=bins)


def _gaps(
    xp: ModuleType, group_N: Array, conf_N: Array, hit_N: Array, mask_N: Array, m
):
    """Sum of confidence minus hits, and number of entries, of each of m groups."""
    zero_N = xp.zeros_like(conf_N)
    gap_N = xp.where(mask_N, conf_N - hit_N.astype(conf_N.dtype), zero_N)
    count_N = mask_N.astype(conf_N.dtype)
    return _sums(xp, group_N, gap_N, m), _sums(xp, group_N, count_N, m)


def _equal_width(xp: ModuleType, conf_N: Array, bins: int) -> Array:
    """Index of the bin (lo, hi] of each confidence."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    edges = edges if xp is np else xp.asarray(edges, conf_N.dtype)
    return xp.clip(xp.searchsorted(edges, conf_N, side="left") - 1, 0, bins - 1)


def _equal_mass(xp: ModuleType, conf_N: Array, mask_N: Array, bins: int) -> Array:
    """Index of the group of each entry: n // bins a group, the rest in the last one."""
    far_N = xp.where(mask_N, conf_N, xp.full_like(conf_N, np.inf))
    order_N = xp.argsort(far_N, stable=True)
    rank_N = xp.argsort(order_N, stable=True)
    size = xp.sum(mask_N) // bins
    group_N = xp.where(size > 0, rank_N // xp.maximum(size, 1), bins - 1)
    return xp.minimum(group_N, bins - 1)


def _expected_gap(xp: ModuleType, gap_M: Array, count_M: Array) -> Array:
    n = xp.sum(count_M)
    return xp.sum(xp.abs(gap_M)) / xp.where(n > 0, n, 1)


def accuracy(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Share of examples whose most probable class (first of ties) is the label."""
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    _, hit_N = _top(xp, probs_NY, label_N)
    right_N = (hit_N & mask_N).astype(probs_NY.dtype)
    return xp.sum(right_N) / xp.maximum(xp.sum(mask_N), 1).astype(probs_NY.dtype)


def nll(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Mean negative log-probability of the label, in nats.

    A probability of exactly 0 counts as the smallest normal number of its dtype
    (float64: 2.2e-308, so at most 708.4 nats an example).
    """
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    p_N = xp.take_along_axis(probs_NY, label_N[:, None], axis=1)[:, 0]
    loss_N = -xp.log(xp.maximum(p_N, xp.finfo(p_N.dtype).tiny))
    loss_N = xp.where(mask_N, loss_N, xp.zeros_like(loss_N))
    return xp.sum(loss_N) / xp.maximum(xp.sum(mask_N), 1).astype(p_N.dtype)


def brier(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Mean squared distance to the one-hot label, summed over classes: 0 to 2."""
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    onehot_NY = _onehot(xp, label_N, probs_NY.shape[1]).astype(probs_NY.dtype)
    loss_N = xp.sum(xp.square(probs_NY - onehot_NY), axis=1)
    loss_N = xp.where(mask_N, loss_N, xp.zeros_like(loss_N))
    return xp.sum(loss_N) / xp.maximum(xp.sum(mask_N), 1).astype(probs_NY.dtype)


def ece(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Expected calibration error of the top label over equal-width bins (METHOD D).

    Sum over bins of |mean confidence - accuracy| times the bin's share of examples; Guo
    et al., 2017, equation 3. 0 to 1.
    """
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    conf_N, hit_N = _top(xp, probs_NY, label_N)
    group_N = _equal_width(xp, conf_N, bins)
    return _expected_gap(xp, *_gaps(xp, group_N, conf_N, hit_N, mask_N, bins))


def mce(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Maximum calibration error: the largest gap of a non-empty bin, 0 to 1.

    A bin of one example counts like any other, so it is noisy; Guo et al., 2017, eq. 5.
    """
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    conf_N, hit_N = _top(xp, probs_NY, label_N)
    group_N = _equal_width(xp, conf_N, bins)
    gap_M, count_M = _gaps(xp, group_N, conf_N, hit_N, mask_N, bins)
    return xp.max(xp.abs(gap_M) / xp.maximum(count_M, 1))


def classwise_ece(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Mean over classes of the equal-width calibration error of p(class), 0 to 1.

    All probabilities count, small ones too; Kull et al., 2019.
    """
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    num_classes = probs_NY.shape[1]
    hit_NY = _onehot(xp, label_N, num_classes)
    mask_NY = xp.broadcast_to(mask_N[:, None], hit_NY.shape)
    # one bin a class and interval: bin m of class c is bin c * bins + m
    group_NY = _equal_width(xp, probs_NY, bins) + bins * xp.arange(num_classes)[None, :]
    flat = (x.reshape(-1) for x in (group_NY, probs_NY, hit_NY, mask_NY))
    return _expected_gap(xp, *_gaps(xp, *flat, bins * num_classes))


def ace(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> Array:
    """Adaptive calibration error of the top label: groups of equal mass, 0 to 1.

    n // bins examples a group in order of confidence, the remainder in the last group;
    with fewer examples than bins all fall into one (METHOD D). The order of examples
    matters only between equal confidences.
    """
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    conf_N, hit_N = _top(xp, probs_NY, label_N)
    group_N = _equal_mass(xp, conf_N, mask_N, bins)
    return _expected_gap(xp, *_gaps(xp, group_N, conf_N, hit_N, mask_N, bins))


def reliability(
    probs_NY: Array, label_N: Array, weight_N: Array | None = None, bins: int = 10
) -> tuple[Array, Array, Array]:
    """Mean confidence, accuracy and number of examples of each bin of `ece`.

    Three arrays (M,); the first two are 0 where the third is.
    """
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    conf_N, hit_N = _top(xp, probs_NY, label_N)
    group_N = _equal_width(xp, conf_N, bins)
    count_M = _sums(xp, group_N, mask_N.astype(conf_N.dtype), bins)
    some_M = xp.maximum(count_M, 1)
    conf_M = _sums(xp, group_N, conf_N * mask_N, bins) / some_M
    hit_M = _sums(xp, group_N, (hit_N & mask_N).astype(conf_N.dtype), bins) / some_M
    return conf_M, hit_M, count_M


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
      eps: smallest probability that counts; with none left the error is 0.
      bins: groups of equal mass, as in `ace`, over all classes together.
      pairing: "correct", or "reference": entry j of the row-major probabilities is
        judged by example j % N and class j // N, as the reference does by mistake
        (METHOD A.9, 1); that number depends on the order of the examples.
      weight_N: 0 for padding rows.

    Raises:
      ValueError: another pairing.
    """
    if pairing not in ("correct", "reference"):
        raise ValueError(f"pairing is {pairing!r}; wanted correct or reference")
    xp, probs_NY, label_N, mask_N = _clean(probs_NY, label_N, weight_N)
    order_N = xp.argsort(~mask_N, stable=True)  # padding last, so that j % n works
    probs_NY, label_N, mask_N = probs_NY[order_N], label_N[order_N], mask_N[order_N]
    hit_NY = _onehot(xp, label_N, probs_NY.shape[1])
    if pairing == "reference":
        n = xp.maximum(xp.sum(mask_N), 1)
        j_NY = xp.arange(probs_NY.size).reshape(probs_NY.shape)
        hit_NY = label_N[j_NY % n] == j_NY // n
    keep = ((probs_NY >= eps) & mask_N[:, None]).reshape(-1)
    conf, hit = probs_NY.reshape(-1), hit_NY.reshape(-1)
    group = _equal_mass(xp, conf, keep, bins)
    return _expected_gap(xp, *_gaps(xp, group, conf, hit, keep, bins))


def compute_all(
    probs: np.ndarray, labels: np.ndarray, bins: int = 10
) -> dict[str, Any]:
    """Every metric as a Python number, computed on the host in float64.

    Args:
      probs: (N, Y), rows sum to 1.
      labels: (N,) classes in 0 .. Y - 1; drop examples without a label before.
      bins: of the calibration errors.

    Returns:
      n, num_classes, accuracy, nll, brier, ece, classwise_ece, mce, ace, tace_EPS, and
      tace_EPS_reference (the reference's pairing) for EPS .01, .001, .0001.
    """
    p, y = np.asarray(probs, np.float64), np.asarray(labels)
    n, num_classes = p.shape
    if zeros := int(np.sum(p[np.arange(n), y] == 0)):
        logging.getLogger(__name__).warning(
            "%d of %d labels have probability 0: counted as %.1e in nll",
            *(zeros, n, np.finfo(np.float64).tiny),
        )
    out = {"accuracy": accuracy(p, y), "nll": nll(p, y), "brier": brier(p, y)}
    for metric in (ece, classwise_ece, mce, ace):
        out[metric.__name__] = metric(p, y, bins=bins)
    names = {eps: f"tace_{np.format_float_positional(eps)}" for eps in TACE_EPS}
    for eps, name in names.items():
        out[name] = thresholded_ace(p, y, eps, bins)
    for eps, name in names.items():
        out[f"{name}_reference"] = thresholded_ace(p, y, eps, bins, "reference")
    numbers = {name: float(value) for name, value in out.items()}
    return {"n": n, "num_classes": num_classes, **numbers}
