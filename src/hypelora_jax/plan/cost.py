"""Floating-point operations of a traced step, and its minimum time on a chip.

Roofline: Williams, Waterman and Patterson 2009. A ring all-reduce over n chips sends
2 (n - 1) / n of its bytes from every chip.
"""

import math
from typing import Any, NamedTuple

import jax

from hypelora_jax.plan.topology import Chip

# A chip sends the bytes this many times (n - 1) / n; the factor of other kinds is 1.
_SENT = {"all-reduce": 2}


def matmul_flops(jaxpr: Any) -> int:
    """Count the floating-point operations of all matrix products of a jaxpr.

    A product of m x k and k x n counts 2 m n k, once for each iteration of a loop.
    Elementwise operations are left out, as in published figures of utilisation. Only
    the most expensive branch of a `cond` counts.
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
    """Return the jaxprs among the parameters of an equation."""
    found = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    )
    closed = [getattr(x, "jaxpr", x) for x in found]
    return [j for j in closed if hasattr(j, "eqns")]


class Roofline(NamedTuple):
    """Seconds that each resource needs for one step, if it never waits for another."""

    compute: float
    hbm: float
    ici: float

    @property
    def seconds(self) -> float:
        """Time of a step: all resources work at once, so the slowest decides."""
        return max(self)

    @property
    def bound(self) -> str:
        """Name of the resource that takes the longest time."""
        return max(self._fields, key=lambda name: getattr(self, name))


def roofline(
    chip: Chip, flops: float, hbm_bytes: float, collectives: dict[str, int], chips: int
) -> Roofline | None:
    """Return the seconds by resource, or None for a chip without published figures.

    Args:
      flops: FLOPs that one chip executes in a step.
      hbm_bytes: bytes that one chip reads and writes in a step.
      collectives: bytes that one chip passes to collectives, by kind.
      chips: number of chips; they are assumed to form one ring.
    """
    if chip.rates is None:
        return None
    rates = chip.rates
    moved = sum(_SENT.get(kind, 1) * n for kind, n in collectives.items())
    sent = moved * (chips - 1) / chips
    return Roofline(flops / rates.flops, hbm_bytes / rates.hbm, sent / rates.ici)
