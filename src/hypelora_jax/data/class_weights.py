"""Weights of classes in the training loss: given, or balanced by the training split."""

from collections.abc import Sequence

import numpy as np

from hypelora_jax.errors import UserError


def class_weights(
    wanted: Sequence[float] | str,
    names: Sequence[str],
    label_N: np.ndarray,
    soft_NY: np.ndarray | None = None,
) -> tuple[float, ...]:
    """Weight of each of the Y classes, > 0; () if no class is weighted.

    `balanced` gives class y the weight N / (Y N_y), so that all classes together weigh
    the same. This is `compute_class_weight` of scikit-learn; King and Zeng (Political
    Analysis 2001), section 3, weight rare events so.

    Args:
      wanted: "none", "balanced" or Y numbers: `loss.class_weights`.
      names: names of the classes.
      label_N: classes of the training split; -1 is no label.
      soft_NY: soft labels, if the run trains on them; each counts with its shares.

    Raises:
      UserError: there are not Y numbers, or a class to balance is not in the split.
    """
    if wanted == "none":
        return ()
    if wanted != "balanced":
        if len(wanted) != len(names):
            raise UserError(
                f"config.loss.class_weights has {len(wanted)} numbers; expected "
                f"{len(names)}, one for each class: {', '.join(names)}"
            )
        return tuple(float(x) for x in wanted)
    if soft_NY is None:
        count_Y = np.bincount(label_N[label_N >= 0], minlength=len(names))
    else:
        count_Y = soft_NY.astype(np.float64).sum(axis=0)
    for name, count in zip(names, count_Y, strict=True):
        if not count:
            raise UserError(
                f"config.loss.class_weights is balanced, but train has no example of "
                f"the class {name!r}; expected one of each class, or a number for each"
            )
    return tuple((count_Y.sum() / (len(names) * count_Y)).tolist())


def example_weights(
    weights: Sequence[float], label_N: np.ndarray, soft_NY: np.ndarray | None = None
) -> np.ndarray | None:
    """Weight of each example, float32 (N,): that of its class; None without weights.

    A soft label has the mean weight of its shares.
    """
    if not weights:
        return None
    weight_Y = np.asarray(weights, np.float64)
    weight_N = weight_Y[label_N] if soft_NY is None else soft_NY @ weight_Y
    return weight_N.astype(np.float32)
