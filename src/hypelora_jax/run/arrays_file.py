"""What a run folder holds of predictions and of its calibrator, read and checked."""

from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.calibration import calibrators
from hypelora_jax.errors import UserError
from hypelora_jax.run import predictions


class Arrays(NamedTuple):
    """What predictions.npz of a split holds."""

    logits: np.ndarray  # (N, Y) raw
    labels: np.ndarray  # (N,), -1 (a number: NaN) where there is none
    ids: np.ndarray | None = None  # (N,)
    soft: np.ndarray | None = None  # (N, Y) shares of raters


def arrays(file: epath.PathLike) -> Arrays:
    """Predictions of a split as `write_npz` wrote them.

    Raises:
      UserError: no readable `.npz` file, or an array that is missing or mis-shaped.
    """
    held = predictions.arrays(file)
    if missing := {"logits", "labels"} - set(held):
        raise UserError(f"{file} has no {min(missing)}; run evaluate again")
    out = Arrays(*(held.get(name) for name in Arrays._fields))
    shape, n = out.logits.shape, len(out.labels) if out.labels.ndim else -1
    fits = len(shape) == 2 and shape[0] == n
    fits &= out.ids is None or out.ids.shape == (n,)
    fits &= out.soft is None or out.soft.shape == shape
    if not fits:
        got = {k: list(x.shape) for k, x in out._asdict().items() if x is not None}
        raise UserError(
            f"{file} has shapes {got}; wanted logits and soft [N, Y], labels and ids "
            "[N]: run evaluate again"
        )
    return out


def calibrator(folder: epath.Path) -> Any | None:
    """State of the calibrator fitted after training; None where there is none.

    Raises:
      UserError: a calibrator.json that is not what a fit writes.
    """
    file = folder / "calibrator.json"
    if not file.exists():
        return None
    try:
        return calibrators.from_json(file.read_bytes().decode())
    except (UserError, UnicodeDecodeError) as e:
        utf8 = isinstance(e, UnicodeDecodeError)
        said = f"not UTF-8 ({e.reason})" if utf8 else str(e)
        raise UserError(
            f"{file}: {said.removesuffix('; fit it again')}; remove the file and fit a "
            f"calibrator again: hypelora calibrate --workdir={folder}"
        ) from None
