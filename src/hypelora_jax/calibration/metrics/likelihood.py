"""Scores of whole predictions: one number for each example, then their mean."""

from collections.abc import Callable

from hypelora_jax.calibration import arrays
from hypelora_jax.calibration.arrays import Array


def accuracy(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Share of examples whose most probable class (first of ties) is the label."""
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    return _mean(arrays.top(probs_NY, label_N)[1], weight_N)


def nll(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Mean negative log-probability of the label, in nats.

    A probability of exactly 0 counts as the smallest normal number of its dtype
    (float64: 2.2e-308, so at most 708.4 nats per example).
    """
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    return _mean(nll_of(probs_NY, label_N), weight_N)


def brier(probs_NY: Array, label_N: Array, weight_N: Array | None = None) -> Array:
    """Mean squared distance to the one-hot label, summed over classes: 0 to 2."""
    _, probs_NY, label_N, weight_N = arrays.clean(probs_NY, label_N, weight_N)
    return _mean(brier_of(probs_NY, label_N), weight_N)


def soft_tv(probs_NY: Array, soft_NY: Array, weight_N: Array | None = None) -> Array:
    """Mean total variation distance to the raters' shares, 0 to 1.

    DistCE of Baan et al., 2022 ("Stop Measuring Calibration When Humans Disagree").
    """
    return _mean(soft_tv_of(probs_NY, soft_NY), _weights(probs_NY, weight_N))


def soft_kl(probs_NY: Array, soft_NY: Array, weight_N: Array | None = None) -> Array:
    """Mean KL divergence of the raters' shares from the probabilities, nats, >= 0.

    A probability of exactly 0 counts as in `nll`.
    """
    return _mean(soft_kl_of(probs_NY, soft_NY), _weights(probs_NY, weight_N))


def soft_brier(probs_NY: Array, soft_NY: Array, weight_N: Array | None = None) -> Array:
    """Mean squared distance to the raters' shares, summed over classes: 0 to 2."""
    return _mean(soft_brier_of(probs_NY, soft_NY), _weights(probs_NY, weight_N))


def nll_of(probs_NY: Array, label_N: Array) -> Array:
    """Negative log-probability of each label, in nats."""
    xp = arrays.namespace(probs_NY)
    p_N = xp.take_along_axis(probs_NY, label_N[:, None], axis=1)[:, 0]
    return -xp.log(xp.maximum(p_N, xp.finfo(p_N.dtype).tiny))


def brier_of(probs_NY: Array, label_N: Array) -> Array:
    """Squared distance of each row to its one-hot label."""
    onehot_NY = arrays.onehot(label_N, probs_NY.shape[1])
    return soft_brier_of(probs_NY, onehot_NY.astype(probs_NY.dtype))


def soft_tv_of(probs_NY: Array, soft_NY: Array) -> Array:
    """Half the sum of absolute differences in each row."""
    xp = arrays.namespace(probs_NY)
    return xp.sum(xp.abs(probs_NY - soft_NY), axis=1) / 2


def soft_kl_of(probs_NY: Array, soft_NY: Array) -> Array:
    """Sum of s log(s / p) of each row; shares of 0 add nothing."""
    xp = arrays.namespace(probs_NY)
    tiny = xp.finfo(probs_NY.dtype).tiny
    log_p_NY = xp.log(xp.maximum(probs_NY, tiny))
    return xp.sum(soft_NY * (xp.log(xp.maximum(soft_NY, tiny)) - log_p_NY), axis=1)


def soft_brier_of(probs_NY: Array, soft_NY: Array) -> Array:
    """Squared distance between the two distributions of each row."""
    xp = arrays.namespace(probs_NY)
    return xp.sum(xp.square(probs_NY - soft_NY), axis=1)


# The distance of each example to the shares of its raters, by the metric's name.
SOFT: dict[str, Callable[[Array, Array], Array]] = {
    "soft_tv": soft_tv_of,
    "soft_kl": soft_kl_of,
    "soft_brier": soft_brier_of,
}


def _mean(x_N: Array, weight_N: Array) -> Array:
    xp = arrays.namespace(x_N)
    return arrays.share(arrays.total(x_N, weight_N), xp.sum(weight_N))


def _weights(probs_NY: Array, weight_N: Array | None) -> Array:
    xp = arrays.namespace(probs_NY)
    if weight_N is None:
        return xp.ones(probs_NY.shape[:1], probs_NY.dtype)
    return xp.asarray(weight_N).astype(probs_NY.dtype)
