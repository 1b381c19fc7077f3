"""Rows of the benchmark, their JSON, and their table."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.timing import Compared

FIELDS = ("name", "rival", "ratio", "low", "high", "ours", "theirs", "unit")


class Mismatch(Exception):
    """Two ways that a row would compare do not compute the same thing."""


class Row(NamedTuple):
    """One comparison; a ratio above 1 means that ours is faster, or smaller."""

    name: str
    rival: str
    ratio: float
    low: float  # interval of the ratio; both are the ratio where there is none
    high: float
    ours: float
    theirs: float
    unit: str
    notes: Mapping[str, Any] = {}  # for details: settings that were tried, CPU time

    def fields(self) -> dict[str, Any]:
        """The row in JSON, rounded to five digits."""
        return {name: _rounded(getattr(self, name)) for name in FIELDS}

    def detail(self) -> dict[str, Any]:
        """The notes in JSON, with the name and the rival of the row."""
        named = {"name": self.name, "rival": self.rival}
        return named | {name: _rounded(x) for name, x in self.notes.items()}


def of_times(name: str, rival: str, found: Compared, **notes: Any) -> Row:
    """Row of two ways that took turns; seconds are medians."""
    ours, theirs = (statistics.median(x.wall) for x in (found.ours, found.theirs))
    own: dict[str, Any] = {"cpu_ratio": found.cpu.ratio, "rounds": len(found.ours.wall)}
    if len(found.trials) > 1:
        own |= {"fastest": found.fastest, "seconds_in_trial": found.trials}
    return Row(name, rival, *found.wall, ours, theirs, "s", own | notes)


def of_counts(
    name: str, rival: str, ours: float, theirs: float, unit: str, **notes: Any
) -> Row:
    """Row of two numbers without spread, of which the smaller one is better."""
    share = theirs / ours if ours else float(ours == theirs) or 1e9
    return Row(name, rival, share, share, share, ours, theirs, unit, notes)


def to_json(about: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """Return the whole of the JSON file.

    Args:
      about: machine, versions, command and date.
      rows: all rows, in order.
    """
    rows = list(rows)
    details = [row.detail() for row in rows if row.notes]
    return {**about, "rows": [row.fields() for row in rows], "details": details}


def from_json(told: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a JSON file, the inverse of `to_json`."""
    notes = {x["name"]: x for x in told["details"]}
    out = []
    for fields in told["rows"]:
        own = notes.get(fields["name"], {})
        own = {n: x for n, x in own.items() if n not in ("name", "rival")}
        out.append(Row(**fields, notes=own))
    return out


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows, as they are in JSON, as a table in Markdown."""
    lines = ["| row | rival | ratio | interval | ours | theirs | unit |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row["low"], row["high"]
        cells = [
            f"`{row['name']}`",
            row["rival"],
            _short(row["ratio"]),
            f"{_short(low)} to {_short(high)}" if low < high else "",
            *(_short(row[name]) for name in ("ours", "theirs")),
            row["unit"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _rounded(x: Any) -> Any:
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, Mapping):
        return {name: _rounded(value) for name, value in x.items()}
    return x
