"""Floating-point operations of a traced step, and the time the hardware needs at least.

Roofline: Williams, Waterman and Patterson 2009. A ring all-reduce over n chips sends
2 (n - 1) / n of its bytes from every chip.
"""

import math
from typing import Any, NamedTuple

import jax

from hypelora_jax.plan.topology import Chip

_SENT = {"all-reduce": 2}  # times (n - 1) / n of the bytes; all others once


def matmul_flops(jaxpr: Any) -> int:
    """Floating-point operations of all matrix products of a jaxpr, loops counted.

    2 m n k a product; what is elementwise is left out, as in published figures of
    utilisation. Of branches the dearest counts.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            total += _dot_flops(eqn)
            continue
        inner = [matmul_flops(j) for j in _inner(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * eqn.params.get("length", 1)
    return total


def _dot_flops(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[i] for i in contracted)


def _inner(eqn: Any) -> list:
    """Jaxprs among the parameters of an equation."""
    found = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    )
    closed = [getattr(x, "jaxpr", x) for x in found]
    return [j for j in closed if hasattr(j, "eqns")]


class Roofline(NamedTuple):
    """Seconds that each resource needs for one step, if nothing else held it up."""

    compute: float
    hbm: float
    ici: float

    @property
    def seconds(self) -> float:
        """The longest: what a step takes where all overlaps."""
        return max(self)

    @property
    def bound(self) -> str:
        """Name of the resource that takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def roofline(
    chip: Chip, flops: float, hbm_bytes: float, collectives: dict[str, int], chips: int
) -> Roofline | None:
    """Seconds by resource; None for a chip without published figures.

    Args:
      flops: executed by one chip in a step.
      hbm_bytes: read and written by one chip in a step.
      collectives: bytes one chip hands to collectives, by kind.
      chips: how many share them; all are taken to be one ring.
    """
    if chip.flops is None:
        return None
    sent = sum(_SENT.get(kind, 1) * n for kind, n in collectives.items())
    sent *= (chips - 1) / chips
    return Roofline(flops / chip.flops, hbm_bytes / chip.hbm_rate, sent / chip.ici_rate)
