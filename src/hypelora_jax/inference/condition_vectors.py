"""The conditions of texts that a run is asked about, for runs that read conditions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hypelora_jax.data.conditions import Vectors
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.run import records


def reader(fitted: Fitted) -> Vectors | None:
    """Return a reader of vectors as in training, or None for a run without any."""
    if "condition" not in fitted.session.model.reads:
        return None
    config, width = fitted.session.settings.condition, fitted.session.task.condition
    condition = records.open_record(str(fitted.run.path))[1].get("condition", {})
    return Vectors(config, tuple(condition.get("shape", (width or config.width,))))


def check_alone(fitted: Fitted) -> None:
    """Check that texts, with their vectors if there are any, are all that a run reads.

    Raises:
      UserError: it reads something else of the task of each text.
    """
    model = fitted.session.model
    lacking = {"which", "sentences", *model.parts.head.reads}
    if found := lacking & {*model.reads, *model.parts.head.reads}:
        raise UserError(
            f"{fitted.run.path} reads {', '.join(sorted(found))} of each text's task, "
            "which a text alone does not have; expected a run without, such as "
            "hypelora adapt makes from one with condition.source=text"
        )


def checked(
    vectors: Vectors | None, conditions: Sequence[Any] | None, n: int
) -> list[np.ndarray] | None:
    """Return the vectors of n texts, or None if the run reads no conditions.

    `vectors` is the run's reader of conditions.

    Raises:
      UserError: there is not one condition for each text, one is not a vector, or
        conditions are given although the run reads none.
    """
    if vectors is None:
        if conditions is not None:
            raise UserError("this run reads no conditions; leave them out")
        return None
    if conditions is None or isinstance(conditions, str):
        raise UserError(
            f"conditions is {conditions!r}; expected a list with one condition for "
            f"each of the {n} texts, each of shape {vectors.shape}"
        )
    conditions = list(conditions)
    if len(conditions) != n:
        raise UserError(
            f"there are {n} texts but {len(conditions)} conditions; expected a list "
            "with one condition for each text"
        )
    for i, one in enumerate(conditions):
        if what := vectors.fault(one):
            raise UserError(f"conditions[{i}]: {what}")
    return [vectors.vector(one) for one in conditions]
