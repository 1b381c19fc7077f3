"""Penalties that are added to a main loss, of single examples or of a whole batch.

A penalty of examples returns (B,). A penalty of a batch is one number for all its rows.
Each row is counted by its weight: weight 0 leaves it out, and weight 2 counts it twice.
The logits are those of the main loss, divided by the training temperature.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypelora_jax.calibration.arrays import present
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.objectives.losses import shares, widen

# (logits, label, weight_B) -> (B,), or () for a penalty of the whole batch
Penalty = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def confidence(logits_BY: jax.Array) -> jax.Array:
    """Confidence penalty of each example, (B,) in [-log Y, 0]: -H(p), in nats.

    It is the term of Pereyra et al. (ICLR workshop 2017), section 3, with -beta H(p).
    """
    logp_BY = jax.nn.log_softmax(widen(logits_BY), axis=-1)
    return jnp.sum(jnp.exp(logp_BY) * logp_BY, axis=-1)


def margin(logits_BY: jax.Array, width: float) -> jax.Array:
    """Margin-based label smoothing of each example, (B,), in the unit of the logits.

    It is sum_k max(0, max_j z_j - z_k - m), the penalty form of the inequality
    constraint of Liu et al. (CVPR 2022). It is zero while no logit is more than `width`
    (m) below the largest, so the main loss keeps its optimum there. The authors'
    program divides the sum by Y. A class that the row does not have counts nothing.
    """
    z_BY = widen(logits_BY)
    below_BY = jnp.max(z_BY, axis=-1, keepdims=True) - z_BY
    over_BY = jnp.where(present(z_BY), jax.nn.relu(below_BY - width), 0)
    return jnp.sum(over_BY, axis=-1)


class _Judged(NamedTuple):
    confidence_B: jax.Array  # largest probability
    hit_B: jax.Array  # label's share of the predicted class; hard: 0 or 1
    weight_B: jax.Array  # sums to 1, or to 0 if there is no row


def _judged(logits_BY: jax.Array, label: jax.Array, weight_B: jax.Array) -> _Judged:
    p_BY = jax.nn.softmax(widen(logits_BY), axis=-1)
    top_B1 = jnp.argmax(p_BY, axis=-1)[:, None]
    hit_B1 = jnp.take_along_axis(shares(label, p_BY), top_B1, axis=-1)
    weight_B = weight_B.astype(p_BY.dtype)
    whole = jnp.sum(weight_B)
    share_B = weight_B / jnp.where(whole > 0, whole, 1)
    return _Judged(jnp.max(p_BY, axis=-1), hit_B1[:, 0], share_B)


def _root(x: jax.Array) -> jax.Array:
    """Square root with gradient 0 where x is 0 (or below 0 by rounding)."""
    positive = x > 0  # the inner `where` keeps sqrt's infinite gradient out at 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def mmce(
    logits_BY: jax.Array, label: jax.Array, weight_B: jax.Array, width: float
) -> jax.Array:
    """Maximum mean calibration error of a batch, () in [0, 1].

    It is sqrt(sum_ij (c_i - r_i) (c_j - r_j) k(r_i, r_j) / m^2) with the confidence r,
    c = 1 where the prediction is right, and k(r, r') = exp(-|r - r'| / width). Kumar et
    al. (ICML 2018) define MMCE_m and add its square root to the likelihood. The sum
    includes i = j, so a calibrated model keeps a positive value of the order of
    1 / sqrt(m). For soft labels c is the share of the predicted class.
    """
    confidence_B, hit_B, weight_B = _judged(logits_BY, label, weight_B)
    apart_BB = jnp.abs(confidence_B[:, None] - confidence_B[None, :])
    gap_B = weight_B * (hit_B - confidence_B)
    return _root(gap_B @ jnp.exp(-apart_BB / width) @ gap_B)


def soft_binned_ece(
    logits_BY: jax.Array,
    label: jax.Array,
    weight_B: jax.Array,
    bins: int,
    temperature: float,
) -> jax.Array:
    """Soft-binned calibration error of a batch, order 2, () in [0, 1].

    It is sqrt(sum_j S_j / N (A_j - C_j)^2) over M bins of equal width (Karandikar et
    al., NeurIPS 2021, equation 11). S_j, A_j and C_j are size, accuracy and mean
    confidence of bin j. Each example belongs to bin j with the weight
    softmax_j(-(r - centre_j)^2 / temperature). As the temperature falls to 0, the error
    becomes the binned error. For soft labels accuracy is the predicted class's share.
    """
    confidence_B, hit_B, weight_B = _judged(logits_BY, label, weight_B)
    centre_M = (jnp.arange(bins, dtype=confidence_B.dtype) + 0.5) / bins
    away_BM = jnp.square(confidence_B[:, None] - centre_M[None, :])
    member_BM = weight_B[:, None] * jax.nn.softmax(-away_BM / temperature, axis=-1)
    size_M = jnp.sum(member_BM, axis=0)
    gap_M = (hit_B - confidence_B) @ member_BM
    filled_M = size_M > 1e-12  # avoids 0 / 0 in far bins, whose share is tiny
    mean_gap_M = gap_M / jnp.where(filled_M, size_M, 1)
    return _root(jnp.sum(jnp.where(filled_M, size_M * jnp.square(mean_gap_M), 0)))


def _confidence(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: confidence(z_BY)


def _margin(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: margin(z_BY, config.margin)


def _mmce(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: mmce(
        z_BY, label, weight_B, config.kernel_width
    )


def _soft_ece(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: soft_binned_ece(
        z_BY, label, weight_B, config.soft_bins, config.bin_temperature
    )


PENALTIES: dict[str, Callable[[LossConfig], Penalty | None]] = {
    "none": lambda config: None,
    "confidence": _confidence,
    "margin": _margin,
    "mmce": _mmce,
    "soft_ece": _soft_ece,
}
