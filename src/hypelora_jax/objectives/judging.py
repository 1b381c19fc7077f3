"""The accumulator of evaluation, which keeps labelled examples until they are judged.

Metrics such as the adaptive calibration error sort all examples, and calibrators are
fitted on them, so the state is the examples themselves, in float64.
"""

from typing import NamedTuple

import numpy as np


class Labelled(NamedTuple):
    """Examples that have a label."""

    logits: np.ndarray  # (N, Y) raw, float64
    labels: np.ndarray  # (N,) classes, or numbers
    soft: np.ndarray | None = None  # (N, Y) shares of raters


def has_label(label_N: np.ndarray) -> np.ndarray:
    """Find examples with a label (N,); -1 (classes) and NaN (numbers) mean no label."""
    if np.issubdtype(label_N.dtype, np.floating):
        return ~np.isnan(label_N)
    return label_N >= 0


def start() -> Labelled:
    """Return the state without any examples."""
    return Labelled(np.zeros((0, 0)), np.zeros(0, np.int32))


def update(
    state: Labelled,
    logits_NY: np.ndarray,
    label_N: np.ndarray,
    soft_NY: np.ndarray | None = None,
) -> Labelled:
    """Add the examples that have a label to the state."""
    keep = has_label(label_N)
    logits_NY = np.asarray(logits_NY, np.float64)[keep]
    soft_NY = None if soft_NY is None else soft_NY[keep]
    return merge(state, Labelled(logits_NY, label_N[keep], soft_NY))


def merge(left: Labelled, right: Labelled) -> Labelled:
    """Join the examples, left first; raters' shares are kept only if both have them."""
    if not len(left.labels):
        return right
    if not len(right.labels):
        return left
    soft_NY = None
    if left.soft is not None and right.soft is not None:
        soft_NY = np.concatenate([left.soft, right.soft])
    return Labelled(
        np.concatenate([left.logits, right.logits]),
        np.concatenate([left.labels, right.labels]),
        soft_NY,
    )
