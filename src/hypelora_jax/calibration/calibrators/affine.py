"""Affine calibrators of several classes: vector scaling and Dirichlet with ODIR.

A class that a row does not have (`arrays.present`) has probability 0 in it, and says
nothing of the others: the row is one of a calibrator of its own classes alone.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import scipy

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.calibrators import examples, logistic, temperature
from hypelora_jax.calibration.calibrators.examples import Examples
from hypelora_jax.calibration.calibrators.temperature import softmax
from hypelora_jax.types import ABSENT

# Penalties that cross-validation chooses from. Kull et al. search 1e-3 to 1e2 on
# splits of 5,000; below 1e-3 a split of 1,000 over-fits.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5


class Vector(NamedTuple):
    """State of vector scaling: p = softmax(scale * z + bias)."""

    scale: np.ndarray  # (Y,)
    bias: np.ndarray  # (Y,), sums to 0


class Dirichlet(NamedTuple):
    """State of Dirichlet calibration: p = softmax(weight @ log softmax(z) + bias)."""

    weight: np.ndarray  # (Y, Y)
    bias: np.ndarray  # (Y,)
    penalty: float  # on the off-diagonal weights and the biases


def fit_vector(logits_NY: Any, label_N: Any, weight_N: Any = None) -> Vector:
    """Fit one scale and one bias per class (Guo et al., 2017, section 4.2).

    The likelihood is maximised from the fitted temperature, so the fit is never worse
    on the split. With two classes this is logistic regression on both logits.
    """
    data = examples.nonempty(logits_NY, label_N, weight_N)
    z_NY, y_N, share_N = data
    given_NY = arrays.present(z_NY)
    mean_Y, spread = _spread(z_NY, given_NY)
    x_NY = (z_NY - mean_Y) / spread
    t = temperature.fit(z_NY, y_N, share_N).temperature
    classes = z_NY.shape[1]

    def to_logits(params: np.ndarray) -> np.ndarray:
        return _of_present(params[:classes] * x_NY + params[classes:], given_NY)

    def adjoint(g_NY: np.ndarray) -> np.ndarray:
        return np.concatenate([np.sum(g_NY * x_NY, axis=0), np.sum(g_NY, axis=0)])

    start = np.concatenate([np.full(classes, spread / t), mean_Y / t])
    found = logistic.maximise(to_logits, adjoint, y_N, share_N, start)
    scale_Y = found[:classes] / spread
    bias_Y = found[classes:] - scale_Y * mean_Y
    return Vector(scale_Y, bias_Y - bias_Y.mean())


def apply_vector(state: Vector, logits_NY: Any) -> Any:
    """Probabilities (N, Y)."""
    wide_NY, (scale_Y, bias_Y) = _alike(logits_NY, state.scale, state.bias)
    found_NY = wide_NY * scale_Y[None, :] + bias_Y[None, :]
    return softmax(_of_present(found_NY, arrays.present(wide_NY)))


def fit_dirichlet(
    logits_NY: Any, label_N: Any, weight_N: Any = None, penalty: float | None = None
) -> Dirichlet:
    """Fit Dirichlet calibration with off-diagonal and intercept regularisation (ODIR).

    The loss is the mean NLL plus the penalty times the mean square of the off-diagonal
    weights and of the biases (Kull et al., 2019, equation 8 of section 4). The search
    starts from the fitted temperature.

    Args:
      logits_NY: raw logits.
      label_N: classes.
      weight_N: 0 for rows to ignore.
      penalty: > 0; None chooses one of PENALTIES by FOLDS-fold cross-validated NLL.
    """
    data = examples.nonempty(logits_NY, label_N, weight_N)
    if penalty is None:
        penalty = _choose(data)
    return _dirichlet(data, penalty)


def apply_dirichlet(state: Dirichlet, logits_NY: Any) -> Any:
    """Probabilities (N, Y)."""
    wide_NY, (weight_YY, bias_Y) = _alike(logits_NY, state.weight, state.bias)
    if isinstance(wide_NY, jax.Array):
        logp_NY = jax.nn.log_softmax(wide_NY, axis=-1)
    else:
        logp_NY = scipy.special.log_softmax(wide_NY, axis=-1)
    given_NY = arrays.present(wide_NY)
    logp_NY = arrays.namespace(wide_NY).where(given_NY, logp_NY, 0)
    return softmax(_of_present(logp_NY @ weight_YY.T + bias_Y[None, :], given_NY))


def _of_present(logits_NY: Any, given_NY: Any) -> Any:
    """Logits in which the classes that a row does not have are ABSENT."""
    return arrays.namespace(logits_NY).where(given_NY, logits_NY, ABSENT)


def _alike(logits_NY: Any, *params: np.ndarray) -> tuple[Any, list]:
    """Cast logits to at least float32, and parameters to their namespace and dtype."""
    xp = arrays.namespace(logits_NY)
    logits_NY = xp.asarray(logits_NY)
    wide_NY = logits_NY.astype(xp.promote_types(logits_NY.dtype, xp.float32))
    return wide_NY, [xp.asarray(p, wide_NY.dtype) for p in params]


def _spread(x_NY: np.ndarray, given_NY: np.ndarray) -> tuple[np.ndarray, float]:
    """Means of the columns, and the root mean square about them, or 1 if that is 0.

    Only the given entries count.
    """
    count_Y = np.maximum(given_NY.sum(axis=0), 1)
    mean_Y = np.where(given_NY, x_NY, 0).sum(axis=0) / count_Y
    square_NY = np.where(given_NY, (x_NY - mean_Y) ** 2, 0)
    return mean_Y, float(np.sqrt(square_NY.sum() / given_NY.sum())) or 1.0


def _dirichlet(data: Examples, penalty: float) -> Dirichlet:
    z_NY, y_N, share_N = data
    given_NY = arrays.present(z_NY)
    logp_NY = np.where(given_NY, scipy.special.log_softmax(z_NY, axis=1), 0)
    classes = z_NY.shape[1]
    size = float(np.sqrt(np.sum(logp_NY**2) / given_NY.sum())) or 1.0
    x_NY = logp_NY / size
    t = temperature.fit(*data).temperature

    def to_logits(params: np.ndarray) -> np.ndarray:
        weight_YY = params[:-classes].reshape(classes, classes)
        return _of_present(x_NY @ weight_YY.T + params[-classes:], given_NY)

    def adjoint(g_NY: np.ndarray) -> np.ndarray:
        return np.concatenate([(g_NY.T @ x_NY).ravel(), np.sum(g_NY, axis=0)])

    off = 1 - np.eye(classes)
    of_weights = penalty / (classes * (classes - 1)) * off / size**2
    of_biases = np.full(classes, penalty / classes)
    start = np.concatenate([(np.eye(classes) * size / t).ravel(), np.zeros(classes)])
    found = logistic.maximise(
        *(to_logits, adjoint, y_N, share_N, start),
        np.concatenate([of_weights.ravel(), of_biases]),
    )
    weight_YY = found[:-classes].reshape(classes, classes) / size
    return Dirichlet(weight_YY, found[-classes:], penalty)


def _choose(data: Examples) -> float:
    """Choose the penalty of lowest cross-validated NLL; the largest if N is small."""
    n = len(data.label_N)
    if n < 2 * FOLDS:
        return PENALTIES[-1]
    fold_N = np.random.default_rng(0).permutation(n) % FOLDS

    def loss(penalty: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            inside = examples.checked(*(x_N[fold_N != fold] for x_N in data))
            state = _dirichlet(inside, penalty)
            z_NY, y_N, share_N = (x_N[fold_N == fold] for x_N in data)
            probs_NY = apply_dirichlet(state, z_NY)
            p_N = np.maximum(probs_NY[np.arange(len(y_N)), y_N], 1e-300)
            total -= share_N @ np.log(p_N)
        return total

    return min(PENALTIES, key=loss)
