"""An estimate as one JSON object, and as a table for people."""

from typing import Any

from hypelora_jax.plan.changes import Change
from hypelora_jax.plan.estimate import Estimate
from hypelora_jax.plan.topology import GIB, Topology
from hypelora_jax.report.metric_tables import Table


def as_dict(found: Estimate, where: Topology, changes: list[Change]) -> dict[str, Any]:
    """Return the JSON object; sizes in bytes, FLOPs and seconds are per chip."""
    return {
        "topology": where.name,
        "chips": found.chips,
        "global_batch": found.global_batch,
        "conditions": found.conditions,
        "trained_parameters": found.trained,
        "fits": found.fits,
        "hbm_bytes": where.chip.hbm_bytes,
        "bytes_per_device": found.bytes_per_device,
        "flops": found.flops,
        "hbm_traffic_bytes": found.hbm_traffic,
        "collective_bytes": found.collective_bytes,
        "roofline_seconds": found.roofline and found.roofline.seconds,
        "roofline": found.roofline and found.roofline._asdict(),
        "bound": found.roofline and found.roofline.bound,
        "mfu": found.mfu,
        "changes": [
            {
                "flags": list(change.flags),
                "cost": change.cost,
                "bytes_per_device": change.estimate.bytes_per_device,
                "roofline_seconds": change.estimate.roofline
                and change.estimate.roofline.seconds,
            }
            for change in changes
        ],
        "compiler": found.compiler,
    }


def advice(found: Estimate, changes: list[Change]) -> list[str]:
    """Return lines on a step that does not fit: the reason, and changes that help."""
    if found.fits:
        return []
    lines = [f"compiler: {found.compiler}"] if found.compiler else []
    lines += [f"would fit with {' '.join(c.flags)}  ({c.cost})" for c in changes]
    return lines if changes else [*lines, "no change that was tried would fit"]


def table(found: Estimate, where: Topology) -> Table:
    """Return a table of the most important figures, one per row."""
    verdict = "fits" if found.fits else "does not fit"
    rows = [
        ("chips", str(found.chips)),
        ("sequences a chip and step", str(found.rows_per_chip)),
        ("sequences a step", str(found.global_batch)),
        ("conditions a step", str(found.conditions)),
        *_trained(found),
        ("memory of a chip", _size(where.chip.hbm_bytes)),
        *((f"  {name}", _size(n)) for name, n in found.bytes_per_device.items()),
        ("TFLOP a chip and step", f"{found.flops / 1e12:.4g}"),
        *_moved(found),
        *_times(found),
    ]
    return Table(f"{where.name}: {verdict}", ("", "per chip"), tuple(rows))


def _trained(found: Estimate) -> list[tuple[str, str]]:
    """Rows of the parameters that train, of all members together."""
    parts = found.trained or {}
    rows = [("trained parameters", f"{sum(parts.values()):,}")]
    return rows + [(f"  {part}", f"{n:,}") for part, n in parts.items()]


def _moved(found: Estimate) -> list[tuple[str, str]]:
    if found.collective_bytes is None:
        return []
    rows = [("HBM traffic a step", _size(found.hbm_traffic))]
    for kind, n in found.collective_bytes.items():
        rows.append((f"{kind} a step", f"{n / 1e6:.3f} MB"))
    return rows


def _times(found: Estimate) -> list[tuple[str, str]]:
    if found.roofline is None:
        return []
    line, rows = found.roofline, []
    for name, seconds in line._asdict().items():
        mark = "  <- bound" if name == line.bound else ""
        rows.append((f"at least, {name}", f"{seconds * 1e3:.3g} ms{mark}"))
    return [*rows, ("MFU at most", f"{found.mfu:.0%}")]


def _size(n: int | None) -> str:
    if n is None:
        return "unknown"
    return f"{n / GIB:.2f} GiB" if n >= GIB else f"{n / 2**20:.2f} MiB"
