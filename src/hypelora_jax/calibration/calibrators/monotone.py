"""Monotone calibrators of one probability: isotonic regression, beta calibration."""

from typing import Any, NamedTuple

import numpy as np
import scipy

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.calibrators import examples, logistic, one_vs_rest


class Isotonic(NamedTuple):
    """State of isotonic regression: K functions, linear between knots, flat outside.

    K is 1 for two classes, else Y; a function's knots x in [0, 1] increase and its
    values y in [0, 1] do not fall.
    """

    x: tuple[np.ndarray, ...]
    y: tuple[np.ndarray, ...]


class Beta(NamedTuple):
    """State of beta calibration: logit q = a log p - b log(1 - p) + c; a, b >= 0."""

    a: np.ndarray  # (K,)
    b: np.ndarray  # (K,)
    c: np.ndarray  # (K,)


def fit_isotonic(logits_NY: Any, label_N: Any, weight_N: Any = None) -> Isotonic:
    """Fit isotonic regression of hits on probabilities (Zadrozny and Elkan, 2002).

    It may give a probability of exactly 0 or 1, so the NLL of new data can be infinite.
    Use it for binned calibration errors and ranking, not for likelihoods.
    """
    data = examples.nonempty(logits_NY, label_N, weight_N)
    knots = [
        _isotonic(np.exp(logp_N), hit_N.astype(float), share_N)
        for logp_N, _, hit_N, share_N in one_vs_rest.problems(data)
    ]
    return Isotonic(tuple(x for x, _ in knots), tuple(y for _, y in knots))


def apply_isotonic(state: Isotonic, logits_NY: Any) -> Any:
    """Probabilities (N, Y)."""
    xp = arrays.namespace(logits_NY)
    p_NK = xp.exp(one_vs_rest.log_probs(logits_NY)[0])
    knots = zip(p_NK.T, state.x, state.y, strict=True)
    q_NK = xp.stack([xp.interp(p_N, x, y) for p_N, x, y in knots], axis=1)
    return one_vs_rest.joined(q_NK.astype(p_NK.dtype), logits_NY)


def _isotonic(
    p_N: np.ndarray, hit_N: np.ndarray, share_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the knots: both ends of each flat piece. Equal p make one point."""
    order_N = np.argsort(p_N, kind="stable")
    first_N = np.diff(p_N[order_N], prepend=-1) > one_vs_rest.SAME
    point_N = np.empty(len(p_N), int)
    point_N[order_N] = np.cumsum(first_N) - 1
    x = p_N[order_N][first_N]
    weight = np.bincount(point_N, share_N)
    mean = np.bincount(point_N, share_N * hit_N) / weight
    y = np.clip(scipy.optimize.isotonic_regression(mean, weights=weight).x, 0, 1)
    inner = np.zeros(len(x), bool)
    inner[1:-1] = (y[1:-1] == y[:-2]) & (y[1:-1] == y[2:])
    return x[~inner], y[~inner]


def fit_beta(logits_NY: Any, label_N: Any, weight_N: Any = None) -> Beta:
    """Fit beta calibration by maximum likelihood under a, b >= 0 (Kull et al., 2017).

    Kull, Silva Filho and Flach, AISTATS 2017, equation 9 and section 4.
    """
    data = examples.nonempty(logits_NY, label_N, weight_N)
    fits = [
        _beta(np.stack([logp_N, -rest_N], axis=1), hit_N, share_N)
        for logp_N, rest_N, hit_N, share_N in one_vs_rest.problems(data)
    ]
    return Beta(*np.array(fits).T)


def apply_beta(state: Beta, logits_NY: Any) -> Any:
    """Probabilities (N, Y)."""
    logp_NK, rest_NK = one_vs_rest.log_probs(logits_NY)
    xp = arrays.namespace(logp_NK)
    a_K, b_K, c_K = (xp.asarray(v_K, logp_NK.dtype)[None, :] for v_K in state)
    q_NK = one_vs_rest.expit(a_K * logp_NK - b_K * rest_NK + c_K)
    return one_vs_rest.joined(q_NK, logits_NY)


def _beta(
    x_N2: np.ndarray, hit_N: np.ndarray, share_N: np.ndarray
) -> tuple[float, float, float]:
    """Find the best (a, b, c) with both, one or neither of a and b free.

    The loss is convex, so if the free optimum has a negative coefficient, the
    constrained optimum lies on a face of a, b >= 0. All faces are tried.
    """
    best, chosen = np.inf, (0.0, 0.0, 0.0)
    for free in ((0, 1), (0,), (1,), ()):
        found, c = logistic.logistic(x_N2[:, free], hit_N, share_N)
        if (found < 0).any():
            continue
        ab = np.zeros(2)
        ab[list(free)] = found
        margin_N = np.where(hit_N, -1, 1) * (x_N2 @ ab + c)
        loss = float(share_N @ np.logaddexp(0, margin_N))
        if loss < best:
            best, chosen = loss, (ab[0], ab[1], c)
    return chosen
