"""Checked reads of the fields of a JSON object that another program or a user wrote.

A read says what type, range and default its field has. A value of another kind, NaN
among the numbers, and a missing field without a default are one line for the user, with
the file and the field.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from hypelora_jax.config.ranges import finite, regex
from hypelora_jax.errors import UserError

REQUIRED: Any = ...  # the default of a field that the file must have
MAX_INTEGER = 2**31 - 1  # token ids and sizes are int32
_SHOWN = 80  # characters of a wrong value in a message


@dataclasses.dataclass(frozen=True)
class JsonFields:
    """A JSON object whose fields are checked when they are read.

    `null` counts as a missing field if the field has a default, because Hugging Face's
    programs write fields that were not set so. Reads raise `UserError`.
    """

    where: str  # the file, and the object in it, for messages
    values: Mapping[str, Any]
    way_out: str = "Use the file that was saved with the weights"

    def fault(self, name: str, expected: str, way_out: str = "") -> NoReturn:
        """Refuse the value of a field, or its absence.

        Args:
          name: the field.
          expected: the allowed values in words.
          way_out: what to do, if it is not that of all fields.

        Raises:
          UserError: always; it names file, field, value and what was expected.
        """
        got = f"no {name}"
        if name in self.values:
            text = json.dumps(self.values[name], default=str)
            text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            got = f"{name}={text}"
        way_out = way_out or self.way_out
        raise UserError(f"{self.where} has {got}; expected {expected}. {way_out}")

    def read(
        self,
        name: str,
        fits: Callable[[Any], bool],
        expected: str,
        default: Any = REQUIRED,
    ) -> Any:
        """The value of a field, or its default.

        Args:
          name: the field.
          fits: whether a value is allowed.
          expected: the allowed values in words, for the message.
          default: the value of a field that is missing or null.
        """
        got = self.values.get(name)
        if got is None and default is not REQUIRED:
            return default
        if name not in self.values or not fits(got):
            self.fault(name, expected)
        return got

    def integer(
        self, name: str, low: int = 0, default: Any = REQUIRED, high: int = MAX_INTEGER
    ) -> Any:
        """An integer in [low, high]."""
        expected = f"an integer of at least {low}"
        expected = (
            expected if high == MAX_INTEGER else f"an integer from {low} to {high}"
        )
        return self.read(
            name, lambda x: type(x) is int and low <= x <= high, expected, default
        )

    def number(self, name: str, low: float = -math.inf, default: Any = REQUIRED) -> Any:
        """A finite number of at least `low`, as a float."""
        expected = "a finite number"
        expected = expected if low == -math.inf else f"{expected} of at least {low:g}"
        got = self.read(name, lambda x: finite(x) and x >= low, expected, default)
        return got if got is None else float(got)

    def rate(self, name: str, default: Any = REQUIRED) -> Any:
        """A dropout rate in [0, 1), as a float."""
        expected = "a rate in [0, 1)"
        got = self.read(name, lambda x: finite(x) and 0 <= x < 1, expected, default)
        return got if got is None else float(got)

    def flag(self, name: str, default: Any = REQUIRED) -> Any:
        """True or false."""
        return self.read(name, lambda x: isinstance(x, bool), "true or false", default)

    def text(self, name: str, default: Any = REQUIRED) -> Any:
        """A string."""
        return self.read(name, lambda x: isinstance(x, str), "a text", default)

    def texts(self, name: str, default: Any = REQUIRED) -> Any:
        """A tuple of strings."""
        got = self.read(name, lambda x: _all(x, str), "a list of texts", default)
        return tuple(got) if isinstance(got, list) else got

    def integers(self, name: str, default: Any = REQUIRED) -> Any:
        """A tuple of integers of at least 0; one integer counts as a list of one."""
        got = self.read(name, _indices, "a list of integers of at least 0", default)
        got = [got] if type(got) is int else got
        return tuple(got) if isinstance(got, list) else got

    def only(self, name: str, *values: Any) -> Any:
        """One of these values; the first is the default."""
        expected = " or ".join(json.dumps(x) for x in values)
        same = [(type(x), x) for x in values]
        return self.read(name, lambda x: (type(x), x) in same, expected, values[0])

    def patterns(self, name: str) -> dict[str, float]:
        """Finite numbers by regexes for names; {} if the field is missing."""
        expected = '{"NAME": NUMBER}, with names or regular expressions for them'
        got = self.read(
            name,
            lambda x: isinstance(x, dict) and all(map(finite, x.values())),
            expected,
            {},
        )
        for key in got:
            regex(f"{self.where}: {name}", key, inside=True)
        return dict(got)

    def regex(self, name: str) -> str:
        """A regular expression.

        Raises:
          UserError: the field is missing, no string or no regular expression.
        """
        got = self.text(name)
        regex(f"{self.where}: {name}", got)
        return got

    def object(self, name: str, default: Any = REQUIRED) -> "JsonFields":
        """The fields of an object in a field; {} has none."""
        got = self.read(name, lambda x: isinstance(x, dict), "an object", default)
        return dataclasses.replace(self, where=f"{self.where}: {name}", values=got)


def _all(x: Any, kind: type) -> bool:
    return isinstance(x, list) and all(type(one) is kind for one in x)


def _indices(x: Any) -> bool:
    found = x if isinstance(x, list) else [x]
    return _all(found, int) and all(0 <= one <= MAX_INTEGER for one in found)
