"""Sweeps as data: lists of config overrides, `{"optim.lr": 1e-3, ...}`.

A launcher turns each into `--config.NAME=VALUE` flags; this package runs nothing.
"""

import itertools
from collections.abc import Sequence
from typing import Any

Sweep = list[dict[str, Any]]


def axis(name: str, values: Sequence[Any]) -> Sweep:
    """Return one override per value."""
    return [{name: value} for value in values]


def product(*sweeps: Sweep) -> Sweep:
    """Return every combination; the last sweep varies fastest."""
    return [_merge(combination) for combination in itertools.product(*sweeps)]


def zip_(*sweeps: Sweep) -> Sweep:
    """Merge the entries of equally long sweeps, one by one."""
    return [_merge(entries) for entries in zip(*sweeps, strict=True)]


def _merge(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for entry in entries:
        if clash := out.keys() & entry.keys():
            raise ValueError(
                f"{sorted(clash)} is set by two of the sweeps; expected sweeps that "
                "set different fields"
            )
        out |= entry
    return out
