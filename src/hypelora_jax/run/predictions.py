"""Predictions of a split, as a run keeps them in eval/SPLIT/predictions.npz."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from hypelora_jax.data import npz
from hypelora_jax.errors import UserError


class Predictions(NamedTuple):
    """Contents of a split's predictions.npz."""

    logits: np.ndarray  # (N, Y) raw
    labels: np.ndarray  # (N,); a missing label is -1, a missing number NaN
    ids: np.ndarray | None = None  # (N,)
    soft: np.ndarray | None = None  # (N, Y) shares of raters


def read(path: epath.PathLike) -> Predictions:
    """Read the predictions of a split as `write` wrote them.

    Raises:
      UserError: the file is not a readable `.npz`, or an array is missing or misshaped.
    """
    arrays = npz.read(path)
    if missing := {"logits", "labels"} - set(arrays):
        raise UserError(f"{path} has no {min(missing)}; run hypelora evaluate again")
    own = (arrays["logits"], arrays["labels"], arrays.get("ids"), arrays.get("soft"))
    out = Predictions(*own)
    shape, n = out.logits.shape, len(out.labels) if out.labels.ndim else -1
    fits = len(shape) == 2 and shape[0] == n
    fits &= out.ids is None or out.ids.shape == (n,)
    fits &= out.soft is None or out.soft.shape == shape
    if not fits:
        got = {k: list(x.shape) for k, x in out._asdict().items() if x is not None}
        raise UserError(
            f"{path} has shapes {got}; expected logits and soft [N, Y], labels and "
            "ids [N]. Run hypelora evaluate again"
        )
    return out


def write(
    path: epath.PathLike,
    logits: ArrayLike,
    labels: ArrayLike,
    ids: Iterable[object] | None = None,
    members: ArrayLike | None = None,
    soft: ArrayLike | None = None,
) -> None:
    """Write the predictions of a split; the file appears whole or not at all.

    Args:
      path: path of the file; missing folders are created.
      logits: (N, Y), raw.
      labels: (N,), -1 for a missing label.
      ids: (N,); None means 0 .. N - 1.
      members: (K, N, Y), raw logits of the members that the prediction averages; they
        are written as `member_logits`.
      soft: (N, Y), shares of raters.
    """
    labels = np.asarray(labels)
    names = np.arange(len(labels)) if ids is None else np.asarray(list(ids))
    if names.dtype == object:
        names = names.astype(str)
    more = {"member_logits": members, "soft": soft}
    own = {name: np.asarray(x) for name, x in more.items() if x is not None}
    npz.write(
        path, {"logits": np.asarray(logits), "labels": labels, "ids": names, **own}
    )
