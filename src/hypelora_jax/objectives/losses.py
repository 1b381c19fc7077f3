"""Main losses of single examples: pure functions of logits and labels, in nats.

A label is a class, int (B,), or the shares of the classes, float (B, Y). In every loss
a hard label means a share of 1 for its class. Everything is computed in at least
float32. docs/losses.md says which probabilities minimise each loss, and the tests check
its equations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypelora_jax.calibration.arrays import present
from hypelora_jax.config.settings import LossConfig

Main = Callable[[jax.Array, jax.Array], jax.Array]  # (logits, label) -> loss_B

# FLSD-53: gamma is 5 where the label's probability is below 0.2, else 3.
FLSD_BELOW, FLSD_HARD, FLSD_EASY = 0.2, 5.0, 3.0


def widen(x: jax.Array) -> jax.Array:
    """Cast an array to at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def shares(label: jax.Array, logits_BY: jax.Array) -> jax.Array:
    """Class shares (B, Y) of a label, in the dtype of the logits."""
    if label.ndim == 2:
        return label.astype(logits_BY.dtype)
    return jax.nn.one_hot(label, logits_BY.shape[-1], dtype=logits_BY.dtype)


def smoothed(label: jax.Array, logits_BY: jax.Array, smoothing: float) -> jax.Array:
    """Spread a part of the shares evenly, (B, Y): q' = (1 - e) q + e / Y.

    This is label smoothing (Szegedy et al., CVPR 2016, section 7, the equation of q'(k)
    with u(k) = 1 / K). `smoothing` is e, in [0, 1). Y counts the classes of the row.
    """
    q_BY, given_BY = shares(label, logits_BY), present(logits_BY)
    classes = logits_BY.shape[-1]
    own_B1 = classes / jnp.maximum(jnp.sum(given_BY, axis=-1, keepdims=True), 1)
    even_BY = jnp.where(given_BY, smoothing / classes * own_B1, 0).astype(q_BY.dtype)
    return (1 - smoothing) * q_BY + even_BY


def cross_entropy(logits_BY: jax.Array, label: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example, in nats: -sum_k q_k log p_k.

    This is the logarithmic score (Good 1952). With logits divided by T it is the loss
    by which Guo et al. (ICML 2017), equation 9, fit T. For soft labels it is the
    cross-entropy and not the divergence, so its minimum is the label's entropy.

    Args:
      logits_BY: unnormalised log-probabilities.
      label: int (B,) classes, or float (B, Y) soft labels whose rows sum to 1.

    Returns:
      (B,), at least 0.
    """
    logp_BY = jax.nn.log_softmax(widen(logits_BY), axis=-1)
    if label.ndim == 2:
        return -jnp.sum(label.astype(logp_BY.dtype) * logp_BY, axis=-1)
    return -jnp.take_along_axis(logp_BY, label[:, None], axis=-1)[:, 0]


def brier(logits_BY: jax.Array, label: jax.Array) -> jax.Array:
    """Brier score of each example, (B,) in [0, 2]: sum_k (p_k - q_k)^2.

    Brier (Monthly Weather Review 1950), equation 2. For two classes it is twice the
    squared error of one probability. For soft labels it differs from the expectation
    over labels drawn from the shares by a number that does not depend on the model.
    """
    p_BY = jax.nn.softmax(widen(logits_BY), axis=-1)
    return jnp.sum(jnp.square(p_BY - shares(label, p_BY)), axis=-1)


def _log_rest(logits_BY: jax.Array) -> jax.Array:
    """log(1 - p) of each class, summed from the others to be precise for p near 1."""
    own_YY = jnp.eye(logits_BY.shape[-1], dtype=bool)[None]
    others_BYY = jnp.where(own_YY, -jnp.inf, logits_BY[:, None, :])
    rest_BY = jax.nn.logsumexp(others_BYY, axis=-1)
    return rest_BY - jax.nn.logsumexp(logits_BY, axis=-1, keepdims=True)


def _focal(logits_BY: jax.Array, label: jax.Array, gamma_BY: jax.Array) -> jax.Array:
    logp_BY = jax.nn.log_softmax(logits_BY, axis=-1)
    factor_BY = jnp.exp(gamma_BY * _log_rest(logits_BY))
    return -jnp.sum(shares(label, logits_BY) * factor_BY * logp_BY, axis=-1)


def focal(logits_BY: jax.Array, label: jax.Array, gamma: float) -> jax.Array:
    """Focal loss of each example, (B,): -sum_k q_k (1 - p_k)^gamma log p_k.

    Lin et al. (ICCV 2017), equation 4; Mukhoti et al. (NeurIPS 2020), section 4, use it
    for calibration. The loss is not proper: for gamma > 0 its minimum is less confident
    than the truth. The map of Charoenphakdee et al. (CVPR 2021) recovers the truth from
    it. gamma = 0 is cross-entropy.
    """
    z_BY = widen(logits_BY)
    return _focal(z_BY, label, jnp.full_like(z_BY, gamma))


def flsd53(logits_BY: jax.Array, label: jax.Array) -> jax.Array:
    """Focal loss with a gamma per example, (B,): 5 where p_y < 0.2, else 3.

    FLSD-53, Mukhoti et al. (NeurIPS 2020), section 5. The gradient treats gamma as a
    constant. For soft labels each class has a gamma, from its probability.
    """
    z_BY = widen(logits_BY)
    hard_BY = jax.nn.softmax(z_BY, axis=-1) < FLSD_BELOW
    gamma_BY = jnp.where(hard_BY, FLSD_HARD, FLSD_EASY).astype(z_BY.dtype)
    return _focal(z_BY, label, gamma_BY)


def squared_error(logits_BY: jax.Array, label_B: jax.Array) -> jax.Array:
    """Squared error of the first logit, (B,), in the label's unit squared."""
    score_B = widen(logits_BY)[:, 0]
    return jnp.square(score_B - label_B.astype(score_B.dtype))


def _focal_of(config: LossConfig) -> Main:
    return lambda logits_BY, label: focal(logits_BY, label, config.gamma)


# The main losses of classes by name; a regression uses the squared error.
LOSSES: dict[str, Callable[[LossConfig], Main]] = {
    "cross_entropy": lambda config: cross_entropy,
    "focal": _focal_of,
    "flsd53": lambda config: flsd53,
    "brier": lambda config: brier,
}
