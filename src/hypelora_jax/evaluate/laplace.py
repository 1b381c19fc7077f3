"""Last-layer Laplace approximation: a Gaussian over the head's last kernel and bias.

MacKay 1992; Daxberger et al. 2021, "Laplace Redux", sections 2 and 4.2. The last layer
is linear, so the generalised Gauss-Newton matrix is the Hessian of the likelihood and
no factorisation is needed. With features phi, the 1 of the bias appended, logits
f = phi W and probabilities p,

    H = sum_n  phi_n phi_n^T  (x)  (diag(p_n) - p_n p_n^T),     cov = (H + tau I)^-1,

and the logits of an input are Gaussian with mean f and covariance J cov J^T, J = phi^T
(x) I. tau is the precision of a N(0, 1 / tau) prior on every weight, chosen by the NLL
of a calibration split. Everything is float64 on the host. Below, F counts the features
including the 1.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy

from hypelora_jax.data import npz
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run

MAX_WEIGHTS = 4096  # of F Y: the matrix takes 0.1 GB, its eigenvectors a minute
PRECISIONS = np.logspace(-4, 6, 101)  # tau; ties in NLL go to the widest prior


class Posterior(NamedTuple):
    """Gaussian over the last layer's weights, F features (with the 1) by Y classes."""

    mean_FY: np.ndarray
    cov_FYFY: np.ndarray
    precision: float  # tau
    temperature: float  # divides the logits; features were divided by it


def with_one(features_NF: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Append the 1 and divide by the temperature: features (N, F + 1) in float64."""
    one_N1 = np.ones((len(features_NF), 1))
    wide = np.concatenate([features_NF.astype(np.float64), one_N1], axis=1)
    return wide / temperature


def hessian(phi_NF: np.ndarray, mean_FY: np.ndarray) -> np.ndarray:
    """H of the negative log-likelihood, (F, Y, F, Y), which does not need labels."""
    probs_NY = scipy.special.softmax(phi_NF @ mean_FY, axis=1)
    f, y = mean_FY.shape
    out = np.empty((f, y, f, y))
    for a in range(y):
        for b in range(a, y):
            curve_N = probs_NY[:, a] * ((a == b) - probs_NY[:, b])
            out[:, a, :, b] = phi_NF.T @ (curve_N[:, None] * phi_NF)
            out[:, b, :, a] = out[:, a, :, b]  # the block of a, b is symmetric
    return out


def fit(
    phi_NF: np.ndarray,
    mean_FY: np.ndarray,
    held_NF: np.ndarray,
    label_N: np.ndarray,
    temperature: float = 1.0,
    link: str = "mean_field",
) -> Posterior:
    """Fit the posterior around trained weights; choose tau on held-out rows.

    Args:
      phi_NF: features of the training split, as `with_one` gives them.
      mean_FY: the trained kernel, with the bias as last row.
      held_NF: features of the calibration split.
      label_N: classes of the calibration split, int (N,), each in [0, Y).
      temperature: divisor of the features, which the result keeps.
      link: key of LINKS; tau is chosen by the probabilities that it gives.

    Raises:
      UserError: the layer has too many weights for a dense matrix.
    """
    mean_FY = np.asarray(mean_FY, np.float64)
    check_size(*mean_FY.shape)
    shape, size = (*mean_FY.shape, *mean_FY.shape), mean_FY.size
    values_P, vectors_PP = np.linalg.eigh(hessian(phi_NF, mean_FY).reshape(size, size))
    values_P = np.maximum(values_P, 0)  # rounding can make eigenvalues of 0 negative
    axes_FYP = vectors_PP.reshape(*mean_FY.shape, size)
    losses, mean_NY = [], held_NF @ mean_FY
    for cov_NYY in _covariances(held_NF, axes_FYP, values_P):
        logp_NY = scipy.special.log_softmax(LINKS[link](mean_NY, cov_NYY), axis=1)
        losses.append(-np.mean(logp_NY[np.arange(len(label_N)), label_N]))
    tau = float(PRECISIONS[int(np.argmin(losses))])
    cov_PP = (vectors_PP / (values_P + tau)) @ vectors_PP.T
    return Posterior(mean_FY, cov_PP.reshape(shape), tau, temperature)


def _covariances(
    phi_NF: np.ndarray, axes_FYP: np.ndarray, values_P: np.ndarray
) -> np.ndarray:
    """Covariance of the logits under each of PRECISIONS, (len, N, Y, Y).

    It uses the eigenvectors of H, so that one decomposition serves all precisions.
    """
    weight_PT = 1 / (values_P[:, None] + PRECISIONS)
    along_NYP = np.einsum("nf,fyp->nyp", phi_NF, axes_FYP, optimize=True)
    n, y, _ = along_NYP.shape
    out = np.empty((len(PRECISIONS), n, y, y))
    for a in range(y):
        for b in range(a, y):
            products_NP = along_NYP[:, a] * along_NYP[:, b]
            out[:, :, a, b] = out[:, :, b, a] = (products_NP @ weight_PT).T
    return out


def check_size(features: int, classes: int) -> None:
    """Check that the last layer is small enough for a dense covariance."""
    if (weights := features * classes) > MAX_WEIGHTS:
        raise UserError(
            f"config.uncertainty.kind=laplace: the last layer has {weights} weights; "
            f"expected at most {MAX_WEIGHTS}. Use kind=mc_dropout or deep_ensemble"
        )


def moments(state: Posterior, phi_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (N, Y) and covariance (N, Y, Y) of the logits at the temperature."""
    y = state.mean_FY.shape[1]
    cov_NYY = np.empty((len(phi_NF), y, y))
    for a in range(y):
        for b in range(a, y):
            block_FF = state.cov_FYFY[:, a, :, b]
            cov_NYY[:, a, b] = np.sum((phi_NF @ block_FF) * phi_NF, axis=1)
            cov_NYY[:, b, a] = cov_NYY[:, a, b]
    return phi_NF @ state.mean_FY, cov_NYY


def probit(mean_NY: np.ndarray, cov_NYY: np.ndarray) -> np.ndarray:
    """Logits of the averaged probabilities: f / sqrt(1 + pi / 8 variance).

    MacKay 1992, eq. 10, class by class, which is laplace-torch's default. Adding one
    number to all logits changes no probability, so only the prior limits the variance
    of that number. This link counts that variance all the same, and so flattens
    predictions far from the decision boundary as much as those near it.
    """
    variance_NY = np.diagonal(cov_NYY, axis1=1, axis2=2)
    return mean_NY / np.sqrt(1 + math.pi / 8 * variance_NY)


def mean_field(mean_NY: np.ndarray, cov_NYY: np.ndarray) -> np.ndarray:
    """Logits of the averaged probabilities, from differences between classes only.

    Lu, Ie and Sha 2020, "mf2": p_c ~ 1 / sum_j exp((f_j - f_c) / sqrt(1 + pi / 8
    var(f_j - f_c))). For two classes it is MacKay's formula for the logistic function.
    """
    own_NY = np.diagonal(cov_NYY, axis1=1, axis2=2)
    variance_NYY = own_NY[:, :, None] + own_NY[:, None, :] - 2 * cov_NYY
    ahead_NYY = mean_NY[:, None, :] - mean_NY[:, :, None]
    shrunk_NYY = ahead_NYY / np.sqrt(1 + math.pi / 8 * np.maximum(variance_NYY, 0))
    return -scipy.special.logsumexp(shrunk_NYY, axis=2)


# `mc` averages draws of the weights; only its choice of tau uses the mean field
LINKS = {"mean_field": mean_field, "probit": probit, "mc": mean_field}


def predict(
    state: Posterior, features_NF: np.ndarray, link: str = "mean_field"
) -> np.ndarray:
    """Raw logits (N, Y); divided by the temperature, they give the probabilities."""
    moments_of = moments(state, with_one(features_NF, state.temperature))
    return state.temperature * LINKS[link](*moments_of)


def draw(
    seed: int, state: Posterior, features_NF: np.ndarray, samples: int
) -> np.ndarray:
    """Raw logits (K, N, Y) of K networks whose last layer is drawn from the posterior.

    With one seed, draw k is the same network for every row and every call.
    """
    f, y = state.mean_FY.shape
    root_PP = np.linalg.cholesky(state.cov_FYFY.reshape(f * y, f * y))
    noise_PK = np.random.default_rng(seed).standard_normal((f * y, samples))
    weights = state.mean_FY[:, :, None] + (root_PP @ noise_PK).reshape(f, y, samples)
    phi_NF = with_one(features_NF, state.temperature)
    return state.temperature * np.einsum("nf,fyk->kny", phi_NF, weights, optimize=True)


def save_posterior(run: Run, state: Posterior, step: int) -> None:
    """Write DIR/laplace.npz; a reader finds all of it or no file."""
    arrays = {name: np.asarray(x) for name, x in state._asdict().items()}
    npz.write(run.posterior_file, {"step": np.asarray(step), **arrays})


def load_posterior(run: Run, step: int) -> Posterior:
    """Read the posterior of a run folder, which must belong to the model of `step`.

    Raises:
      UserError: the file is missing, or it belongs to another model.
    """
    path = run.posterior_file
    if not path.exists():
        raise UserError(
            f"{run.path} has no {path.name}; expected a finished run of "
            "uncertainty.kind=laplace. Run hypelora train with the same --workdir"
        )
    arrays = npz.read(path)
    fields = set(Posterior._fields)
    if not fields | {"step"} <= arrays.keys() or int(arrays["step"]) != step:
        raise UserError(
            f"{path} does not belong to the model of step {step}; delete summary.json "
            "and run hypelora train with the same --workdir to fit it again"
        )
    one = {n: float(arrays[n]) for n in ("precision", "temperature")}
    return Posterior(arrays["mean_FY"], arrays["cov_FYFY"], **one)
