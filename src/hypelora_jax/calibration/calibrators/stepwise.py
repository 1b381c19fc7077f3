"""Binning calibrators of one probability: histogram binning and the Platt-binner."""

from typing import Any, NamedTuple

import numpy as np
import scipy

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.calibrators import examples, logistic, one_vs_rest


class Histogram(NamedTuple):
    """State of histogram binning: K step functions of p.

    `edges` (M - 1,) are the inner edges. Bin m is (edges[m - 1], edges[m]] and has the
    value `values[m]`. K is 1 for two classes, else Y.
    """

    edges: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]


class PlattBinner(NamedTuple):
    """State of the Platt-binner: K step functions of q = expit(slope logit p + c)."""

    slope: np.ndarray  # (K,)
    intercept: np.ndarray  # (K,)
    edges: tuple[np.ndarray, ...]  # of q, as in Histogram
    values: tuple[np.ndarray, ...]


def fit_histogram(
    logits_NY: Any,
    label_N: Any,
    weight_N: Any = None,
    bins: int = 10,
    equal_mass: bool = True,
) -> Histogram:
    """Fit histogram binning, each bin's share of hits (Zadrozny and Elkan, 2001).

    Args:
      logits_NY: raw logits.
      label_N: classes.
      weight_N: 0 for rows to ignore.
      bins: largest number of bins; equal probabilities stay in one bin.
      equal_mass: True gives each bin as many examples; False gives bins equal widths,
        and the value of an empty bin is its middle.
    """
    data = examples.nonempty(logits_NY, label_N, weight_N)
    edges, values = [], []
    for logp_N, _, hit_N, share_N in one_vs_rest.problems(data):
        p_N = np.exp(logp_N)
        inner = np.linspace(0, 1, bins + 1)[1:-1]
        inner = _equal_mass(p_N, share_N, bins) if equal_mass else inner
        edges.append(inner)
        values.append(_means(p_N, hit_N.astype(float), share_N, inner))
    return Histogram(tuple(edges), tuple(values))


def apply_histogram(state: Histogram, logits_NY: Any) -> Any:
    """Probabilities (N, Y)."""
    p_NK = arrays.namespace(logits_NY).exp(one_vs_rest.log_probs(logits_NY)[0])
    return one_vs_rest.joined(_steps(p_NK, state.edges, state.values), logits_NY)


def fit_platt_binner(
    logits_NY: Any, label_N: Any, weight_N: Any = None, bins: int = 10
) -> PlattBinner:
    """Fit the scaling-binning calibrator (Kumar, Liang and Ma, 2019, section 4).

    The steps are Platt scaling, bins of equal mass, and the mean of the *scaled*
    probabilities in each bin. All three use the whole split, as the authors' package
    does; the paper's guarantee is for three disjoint parts.
    """
    data = examples.nonempty(logits_NY, label_N, weight_N)
    fits = []
    for logp_N, rest_N, hit_N, share_N in one_vs_rest.problems(data):
        odds_N = logp_N - rest_N
        slope, c = logistic.logistic(odds_N[:, None], hit_N, share_N)
        q_N = scipy.special.expit(slope[0] * odds_N + c)
        inner = _equal_mass(q_N, share_N, bins)
        fits.append((slope[0], c, inner, _means(q_N, q_N, share_N, inner)))
    slope_K, c_K, edges, values = zip(*fits, strict=True)
    return PlattBinner(np.array(slope_K), np.array(c_K), edges, values)


def apply_platt_binner(state: PlattBinner, logits_NY: Any) -> Any:
    """Probabilities (N, Y)."""
    logp_NK, rest_NK = one_vs_rest.log_probs(logits_NY)
    xp = arrays.namespace(logp_NK)
    slope_K = xp.asarray(state.slope, logp_NK.dtype)[None, :]
    c_K = xp.asarray(state.intercept, logp_NK.dtype)[None, :]
    q_NK = one_vs_rest.expit(slope_K * (logp_NK - rest_NK) + c_K)
    return one_vs_rest.joined(_steps(q_NK, state.edges, state.values), logits_NY)


def _equal_mass(p_N: np.ndarray, share_N: np.ndarray, bins: int) -> np.ndarray:
    """Place inner edges midway between neighbours, so that bins get similar shares."""
    order_N = np.argsort(p_N, kind="stable")
    sorted_N, upto_N = p_N[order_N], np.cumsum(share_N[order_N])
    # subtract 1e-9, so that a share of exactly m / bins ends a bin despite rounding
    last = np.searchsorted(upto_N, np.arange(1, bins) / bins - 1e-9)
    # a cut among equal probabilities moves to their end, to keep them together
    ends = sorted_N[last] + one_vs_rest.SAME
    last = np.searchsorted(sorted_N, ends, side="right") - 1
    last = np.unique(last[last < len(p_N) - 1])
    low, high = sorted_N[last], sorted_N[last + 1]
    middle = 0.5 * (low + high)
    return np.unique(np.where(middle < high, middle, low))  # no float between them


def _means(
    p_N: np.ndarray, x_N: np.ndarray, share_N: np.ndarray, inner: np.ndarray
) -> np.ndarray:
    """Mean of x in each bin of p, or the middle of an empty bin."""
    bin_N = np.searchsorted(inner, p_N, side="left")
    mass = np.bincount(bin_N, share_N, minlength=len(inner) + 1)
    total = np.bincount(bin_N, share_N * x_N, minlength=len(inner) + 1)
    ends = np.concatenate([[0.0], inner, [1.0]])
    middle = 0.5 * (ends[:-1] + ends[1:])
    mean = np.where(mass > 0, total / np.where(mass > 0, mass, 1), middle)
    return np.clip(mean, 0, 1)  # rounding may lift a share of 1 above 1


def _steps(
    p_NK: Array, edges: tuple[np.ndarray, ...], values: tuple[np.ndarray, ...]
) -> Array:
    """Evaluate the K step functions at p, in the dtype of p."""
    xp = arrays.namespace(p_NK)
    columns = [
        xp.asarray(v, p_N.dtype)[xp.searchsorted(xp.asarray(e, p_N.dtype), p_N)]
        for p_N, e, v in zip(p_NK.T, edges, values, strict=True)
    ]
    return xp.stack(columns, axis=1)
