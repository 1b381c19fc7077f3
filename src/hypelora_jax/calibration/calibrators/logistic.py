"""Maximum likelihood of softmax(linear map of the parameters)."""

from collections.abc import Callable

import numpy as np
import scipy

# A ridge on every parameter gives exactly one optimum, even on separable splits. It
# moves a parameter by about 1e-10 / curvature, which is below 1e-6 on real splits.
RIDGE = 1e-10
# Norm of the gradient, in nats; ordinary splits reach it within 50 Newton steps.
TOLERANCE = 1e-10


def maximise(
    to_logits: Callable[[np.ndarray], np.ndarray],
    adjoint: Callable[[np.ndarray], np.ndarray],
    label_N: np.ndarray,
    share_N: np.ndarray,
    start_P: np.ndarray,
    penalty_P: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Find the parameters (P,) of the lowest mean NLL plus sum(penalty * parameter^2).

    The trust-region Newton method needs only products with the Hessian, so the cost
    grows with N * Y and P, not with P^2. The result is never worse than the start.

    Args:
      to_logits: linear map, (P,) -> (N, Y).
      adjoint: its transpose, (N, Y) -> (P,).
      label_N: classes.
      share_N: weights that sum to 1.
      start_P: start of the search; the tiny ridge pulls towards it.
      penalty_P: weights of the squares, 0 or above.
    """
    rows = np.arange(len(label_N))

    def parts(x_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z_NY = to_logits(x_P)
        return z_NY, scipy.special.softmax(z_NY, axis=1)

    def loss(x_P: np.ndarray) -> tuple[float, np.ndarray]:
        z_NY, p_NY = parts(x_P)
        nll_N = scipy.special.logsumexp(z_NY, axis=1) - z_NY[rows, label_N]
        off_P = x_P - start_P
        value = share_N @ nll_N + np.sum(penalty_P * x_P**2) + RIDGE * (off_P @ off_P)
        p_NY[rows, label_N] -= 1  # now the gradient of the NLL by the logits
        slope_P = adjoint(share_N[:, None] * p_NY)
        return value, slope_P + 2 * penalty_P * x_P + 2 * RIDGE * off_P

    def curvature(x_P: np.ndarray, v_P: np.ndarray) -> np.ndarray:
        _, p_NY = parts(x_P)
        dp_NY = p_NY * to_logits(v_P)
        dp_NY -= p_NY * dp_NY.sum(axis=1, keepdims=True)
        return adjoint(share_N[:, None] * dp_NY) + 2 * (penalty_P + RIDGE) * v_P

    found = scipy.optimize.minimize(
        loss,
        start_P,
        jac=True,
        hessp=curvature,
        method="trust-ncg",
        options={"gtol": TOLERANCE, "maxiter": 1000},
    )
    return found.x if found.fun <= loss(start_P)[0] else start_P


def logistic(
    x_NP: np.ndarray, hit_N: np.ndarray, share_N: np.ndarray
) -> tuple[np.ndarray, float]:
    """Coefficients (P,) and intercept of the logistic regression of hit on x.

    Columns are centred and scaled for the search; P may be 0.
    """
    mean_P = share_N @ x_NP
    spread_P = np.sqrt(share_N @ (x_NP - mean_P) ** 2)
    spread_P = np.where(spread_P > 0, spread_P, 1.0)
    design = np.column_stack([(x_NP - mean_P) / spread_P, np.ones(len(x_NP))])

    def to_logits(b_P: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros(len(x_NP)), design @ b_P], axis=1)

    def adjoint(g_NY: np.ndarray) -> np.ndarray:
        return design.T @ g_NY[:, 1]

    start = np.zeros(design.shape[1])
    found = maximise(to_logits, adjoint, hit_N.astype(int), share_N, start)
    coefficients = found[:-1] / spread_P
    return coefficients, float(found[-1] - coefficients @ mean_P)
