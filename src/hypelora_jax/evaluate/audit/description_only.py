"""A predictor that sees only the description of a task, and not the text.

It answers with the shares of the classes that a ridge regression predicts from the
vector of the description. If it is as good as the adapter, the answer was in the
description.
"""

import numpy as np

PENALTIES = tuple(10.0**k for k in range(-2, 5))  # of the ridge, relative to the rows
FLOOR = 1e-3  # least probability of a class


def shares(label_N: np.ndarray, task_N: np.ndarray, classes: int) -> np.ndarray:
    """Return the shares of the classes of each task, (K, Y), in the order of its index.

    Tasks are those that occur; a label below 0 does not count.
    """
    tasks = np.unique(task_N)
    out = np.zeros((len(tasks), classes))
    for i, task in enumerate(tasks):
        own = label_N[(task_N == task) & (label_N >= 0)]
        out[i] = np.bincount(own, minlength=classes) / max(len(own), 1)
    return out


def fit_predict(
    train_KC: np.ndarray, share_KY: np.ndarray, wanted_MC: np.ndarray
) -> np.ndarray:
    """Predict the shares (M, Y) of tasks from those of training tasks.

    The penalty is the one with the least error when each training task is left out
    (Allen 1974). Vectors are centred and scaled to unit variance over training tasks.

    Args:
      train_KC: vectors of the training tasks.
      share_KY: their shares.
      wanted_MC: vectors of the tasks that are asked for.
    """
    train, share = train_KC.astype(np.float64), share_KY.astype(np.float64)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale = np.where(scale > 1e-6 * np.abs(mean), scale, 1)
    x, wanted = (train - mean) / scale, (wanted_MC - mean) / scale
    centre = share.mean(axis=0)
    gram, cross = x @ x.T / x.shape[1], wanted @ x.T / x.shape[1]
    best, least = np.tile(centre, (len(wanted), 1)), np.inf
    for penalty in PENALTIES:
        inverse = np.linalg.inv(gram + penalty * np.eye(len(x)))
        dual = inverse @ (share - centre)
        left_out = dual / np.diag(inverse)[:, None]  # error when a task is left out
        error = float(np.mean(left_out**2))
        if error < least:
            best, least = centre + cross @ dual, error
    best = np.clip(best, FLOOR, None)
    return best / best.sum(axis=1, keepdims=True)
