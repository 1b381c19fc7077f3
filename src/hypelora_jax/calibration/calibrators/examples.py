"""The examples that a calibrator is fitted on, checked and in float64."""

from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration import arrays
from hypelora_jax.errors import UserError


class Examples(NamedTuple):
    """Logits (N, Y) and labels (N,), with shares (N,) that sum to 1."""

    logits_NY: np.ndarray
    label_N: np.ndarray
    share_N: np.ndarray


def checked(logits: Any, label: Any, weight: Any = None) -> Examples:
    """Check the examples of a split; return float64 without the rows of weight 0.

    Raises:
      UserError: a label that is not a class, logits that are not finite, or a weight
        that is negative or not finite.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(label)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    wrong = ~(np.isfinite(w) & (w >= 0))
    if wrong.any():
        raise UserError(
            f"a weight is {w[wrong][0]}; expected a finite number from 0 on"
        )
    z, y, w = z[w > 0], y[w > 0], w[w > 0]
    if np.any((y < 0) | (y >= z.shape[1])):
        raise UserError(
            f"labels run from {y.min()} to {y.max()}; expected 0 to {z.shape[1] - 1} "
            "to fit a calibrator: drop the rows without a label"
        )
    if bad := int(np.sum(~np.isfinite(z).all(axis=1))):
        raise UserError(
            f"{bad} of {len(z)} rows of logits are not finite; expected finite logits "
            "to fit a calibrator. If the run diverged, train again with a lower "
            "optim.lr"
        )
    return Examples(z, y.astype(np.int64), w / w.sum() if len(w) else w)


def nonempty(logits: Any, label: Any, weight: Any = None) -> Examples:
    """As `checked`, but raise a UserError if there is no example.

    Rows whose label is a class that they do not have are left out: its probability is 0
    whatever is fitted.
    """
    found = checked(logits, label, weight)
    some_N = arrays.present(found.logits_NY)[
        np.arange(len(found.label_N)), found.label_N
    ]
    if not some_N.all():
        found = checked(*(x[some_N] for x in found))
    if not len(found.label_N):
        raise UserError(
            "no example has a label; expected at least one to fit this calibrator"
        )
    return found
