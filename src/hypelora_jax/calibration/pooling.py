"""Averages over the members of an ensemble, and how much the members disagree.

The predictive distribution of K members is the mean of their probabilities
(Lakshminarayanan et al. 2017, section 2.4). It is returned as logits, so that
calibrators and files treat it like any other prediction.
"""

import numpy as np
import scipy


def pool(logits_KNY: np.ndarray, temperature_K: np.ndarray | float = 1.0) -> np.ndarray:
    """Logits (N, Y) whose softmax is the mean of the members' probabilities.

    Each row is log(mean probability) plus a constant, which is chosen so that members
    with equal logits return exactly these logits. A single output is the prediction of
    a regression, so the members' outputs are averaged. The result is computed in
    float64 and returned in the dtype of the members.

    Args:
      logits_KNY: raw logits of K >= 1 members.
      temperature_K: > 0; divides the logits of each member. The result has the scale
        of the first member, so divide it by the first temperature.
    """
    first_NY = logits_KNY[0]
    if len(logits_KNY) == 1:
        return first_NY
    wide = logits_KNY.astype(np.float64)
    if wide.shape[-1] == 1:
        return (wide[0] + np.mean(wide - wide[0], axis=0)).astype(first_NY.dtype)
    t_K = np.broadcast_to(np.asarray(temperature_K, np.float64), len(wide))
    logp_KNY = scipy.special.log_softmax(wide / t_K[:, None, None], axis=-1)
    over_KNY = logp_KNY - logp_KNY[0]
    top_NY = over_KNY.max(axis=0)
    mean_NY = top_NY + np.log(np.mean(np.exp(over_KNY - top_NY), axis=0))
    return (wide[0] + t_K[0] * mean_NY).astype(first_NY.dtype)


def disagreement(logits_KNY: np.ndarray) -> float:
    """Share of rows that two members classify differently, averaged over all pairs.

    The share is in [0, 1], and 0 for one member (Fort et al. 2019, section 4).
    """
    top_KN = np.argmax(logits_KNY, axis=-1)
    k = len(top_KN)
    if k < 2:
        return 0.0
    pairs = [np.mean(top_KN[i] != top_KN[j]) for i in range(k) for j in range(i)]
    return float(np.mean(pairs))
