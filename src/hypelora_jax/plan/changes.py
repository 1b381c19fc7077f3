"""Changes that make a step fit, the cheapest first, each tried by compiling it."""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.plan import topology as topologies
from hypelora_jax.plan.estimate import Estimate, estimate
from hypelora_jax.plan.topology import Topology

WANTED = 2  # changes to offer


class Change(NamedTuple):
    """Flags to add to the command, their cost, and the estimate of the changed step."""

    flags: tuple[str, ...]
    cost: str
    estimate: Estimate


class _Try(NamedTuple):
    fields: dict[str, Any]  # fields of the config, by dotted name
    topology: str
    cost: str


def with_fields(settings: Settings, fields: dict[str, Any]) -> Settings:
    """Replace fields of the settings; they are named `section.field`."""
    for name, value in fields.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(settings, section), **{field: value})
        settings = dataclasses.replace(settings, **{section: part})
    return settings


def changes(
    settings: Settings,
    where: Topology,
    found: Estimate,
    find: Callable[[str], Topology] = topologies.topology,
) -> list[Change]:
    """Return the two cheapest changes that make the step fit, or as many as exist.

    Groups of changes are tried in the order of their cost: micro-batches (the same sums
    in smaller parts), recomputed activations (a third more FLOPs), weights and state
    sharded over the chips (gathered when needed), more chips, a smaller dtype, and
    last a smaller batch, which changes the training. In each group the first change
    that fits is taken.
    """
    out: list[Change] = []
    for group in _groups(settings, where, found, out):
        for attempt in group:
            if change := _tried(settings, where, attempt, find):
                out.append(change)
                break
        if len(out) == WANTED:
            break
    return out


def _tried(
    settings: Settings,
    where: Topology,
    attempt: _Try,
    find: Callable[[str], Topology],
) -> Change | None:
    """Return the change if it compiles and fits, else None."""
    flags = [f"--config.{name}={value}" for name, value in attempt.fields.items()]
    place = where
    try:
        if attempt.topology != where.name:
            flags.append(f"--topology={attempt.topology}")
            place = find(attempt.topology)
        result = estimate(with_fields(settings, attempt.fields), place)
    except UserError:  # sizes do not divide
        return None
    return Change(tuple(flags), attempt.cost, result) if result.fits else None


def _groups(
    settings: Settings, where: Topology, found: Estimate, out: list[Change]
) -> Iterator[Iterator[_Try]]:
    """Yield groups of changes; the caller adds to `out` the changes that fit."""
    here = where.name
    cut = {"mesh.data": 1, "mesh.fsdp": found.chips}
    remat = {"model.remat": "layer"}
    rows = found.rows_per_chip
    plain = settings.model.remat == "none"
    again = "a third more FLOPs"
    if _arguments_fit(where, found):  # else smaller activations cannot help
        yield _micro(settings, here, rows, {}, "the same step in {} micro-batches")
        if plain:
            cost = f"{again}, {{}} micro-batches"
            parts = _micro(settings, here, rows, remat, cost, _parts(out))
            yield itertools.chain([_Try(remat, here, again)], parts)
    if settings.mesh.fsdp == settings.mesh.model == 1 and found.chips > 1:
        cost = "weights gathered layer by layer"
        first = _Try(cut, here, cost)
        cost += f", {again}, {{}} micro-batches"
        parts = _micro(settings, here, rows, cut | remat, cost, _parts(out))
        yield itertools.chain([first], parts)
    yield (
        _Try({}, name, f"more chips than {found.chips}")
        for name in topologies.larger(here)
    )
    if settings.model.dtype == "float32":
        yield iter([_Try({"model.dtype": "bfloat16"}, here, "coarser numbers")])
    yield _smaller(settings, here, rows)


def _arguments_fit(where: Topology, found: Estimate) -> bool:
    limit, arguments = where.chip.hbm_bytes, found.bytes_per_device["arguments"]
    return limit is None or arguments is None or arguments < limit


def _parts(out: list[Change]) -> int:
    """Return the number of micro-batches that fits without another change.

    With recomputation only fewer need to be tried; if none fits alone, any number.
    """
    flag = "--config.optim.accumulate="
    found = [f.removeprefix(flag) for c in out for f in c.flags if f.startswith(flag)]
    return min(map(int, found), default=sys.maxsize)


def _micro(
    settings: Settings,
    here: str,
    rows: int,
    fields: dict[str, Any],
    cost: str,
    below: int = sys.maxsize,
) -> Iterator[_Try]:
    """Yield two, four, ... times as many micro-batches, if they divide the rows."""
    parts = 2 * settings.optim.accumulate
    while rows % parts == 0 and parts < below:
        yield _Try(fields | {"optim.accumulate": parts}, here, cost.format(parts))
        parts *= 2


def _smaller(settings: Settings, here: str, rows: int) -> Iterator[_Try]:
    """Yield half, a quarter, ... of the batch, which is a different training run."""
    batch, divisor = settings.optim.batch_size, 2
    while rows % divisor == 0:
        fields = {"optim.batch_size": batch // divisor}
        yield _Try(fields, here, "fewer examples a step: another training run")
        divisor *= 2
