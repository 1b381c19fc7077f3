"""Fields of fitted calibrators to and from JSON, with strict checks and no pickle."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration.calibrators.affine import Dirichlet, Vector
from hypelora_jax.calibration.calibrators.monotone import Beta, Isotonic
from hypelora_jax.calibration.calibrators.stepwise import Histogram, PlattBinner
from hypelora_jax.calibration.calibrators.temperature import Temperature
from hypelora_jax.errors import UserError

# (fields, what they must be, test of all fields by name)
Check = tuple[str, str, Callable[[dict[str, Any]], bool]]


class Identity(NamedTuple):
    """State without calibration: probabilities are the softmax of the logits."""


def num_classes(state: Any) -> int | None:
    """Number of classes that a state was fitted for; None if it fits any number."""
    if isinstance(state, Identity | Temperature):
        return None
    k = len(state[0])
    return k if isinstance(state, Vector | Dirichlet) or k > 1 else 2


def plain(value: Any) -> Any:
    """Convert a field to a JSON value; NaN becomes null."""
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def temperature(values: dict[str, Any]) -> Temperature:
    """Build the state of temperature scaling from its fields; null becomes NaN."""
    t = values.get("temperature")
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 < t < math.inf:
        raise UserError(
            f"the calibrator has temperature {t!r}; expected a number above 0"
        )
    for name, value in values.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise UserError(f"the calibrator has {name} {value!r}; expected a number")
    nothing = {name: math.nan for name, value in values.items() if value is None}
    return Temperature(**{**values, **nothing})


def fields_of(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Convert fields to arrays; all must be for the same number of classes."""
    out = {
        field: _list_of_arrays(field, v)
        if field in ("x", "y", "edges", "values")
        else _array(field, v)
        for field, v in values.items()
    }
    lengths = {len(v) for v in out.values() if not isinstance(v, float)}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(
            f"calibrator {name} has fields for {sorted(lengths)} classes; expected "
            "the same number of classes in every field; fit it again"
        )
    return out


def _array(field: str, value: Any) -> np.ndarray | float:
    def numbers(v: Any) -> bool:
        if isinstance(v, list):
            return all(map(numbers, v))
        return isinstance(v, int | float) and not isinstance(v, bool)

    try:
        array = np.array(value, np.float64) if numbers(value) else None
    except ValueError:  # rows of unequal lengths
        array = None
    if array is None or not np.isfinite(array).all():
        raise UserError(
            f"the calibrator has no finite numbers as {field!r}; fit it again"
        )
    return float(array) if array.ndim == 0 else array


def _list_of_arrays(field: str, value: Any) -> tuple[np.ndarray, ...]:
    arrays = [_array(field, v) for v in value] if isinstance(value, list) else []
    lists = tuple(a for a in arrays if isinstance(a, np.ndarray) and a.ndim == 1)
    if len(lists) < len(arrays):
        raise UserError(
            f"the calibrator has no lists of numbers as {field!r}; fit it again"
        )
    return lists


def _vectors(*fields: str) -> tuple[Check, ...]:
    return tuple(
        (field, "a list of numbers", lambda out, f=field: np.ndim(out[f]) == 1)
        for field in fields
    )


def _each(low: str, high: str, longer: int) -> Callable[[dict[str, Any]], bool]:
    """Build a test: points increase in [0, 1], and there are `longer` more values."""

    def right(out: dict[str, Any]) -> bool:
        return all(
            np.all(np.diff(x) > 0)
            and len(y) == len(x) + longer
            and all(((0 <= v) & (v <= 1)).all() for v in (x, y))
            for x, y in zip(out[low], out[high], strict=True)
        )

    return right


_STEPS = (
    "edges or values",
    "edges that increase in [0, 1], and one value more than edges, each in [0, 1]",
    _each("edges", "values", 1),
)
CHECKS: dict[type, tuple[Check, ...]] = {
    Vector: _vectors("scale", "bias"),
    Dirichlet: (
        *_vectors("bias"),
        (
            "weight",
            "a square matrix",
            lambda out: np.shape(out["weight"]) == (len(out["bias"]),) * 2,
        ),
        ("penalty", "a number", lambda out: np.ndim(out["penalty"]) == 0),
    ),
    Isotonic: (
        (
            "x or y",
            "knots that increase in [0, 1] and values that do not fall",
            lambda out: (
                _each("x", "y", 0)(out)
                and all(len(y) and np.all(np.diff(y) >= 0) for y in out["y"])
            ),
        ),
    ),
    Histogram: (_STEPS,),
    Beta: (
        *_vectors("a", "b", "c"),
        (
            "a or b",
            "numbers of at least 0",
            lambda out: (out["a"] >= 0).all() and (out["b"] >= 0).all(),
        ),
    ),
    PlattBinner: (*_vectors("slope", "intercept"), _STEPS),
}
