"""Conformal sets of the methods: how often they hold the truth, and their size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypelora_jax.report.runs import Method
from hypelora_jax.report.tables import Table, cell, title_of

SHOWN = ("coverage", "size", "single", "empty", "worst_class")


def table(methods: Sequence[Method], split: str) -> Table | None:
    """Coverage and size by method and kind of set; None where no run has them.

    They are read from `conformal` in the split's metrics.json: the coverage wanted, and
    for each kind its coverage, mean size, shares of single and of empty sets, and
    coverage of the worst class. Several seeds: means, and no interval.
    """
    rows, sections, wanted = [], [], set()
    for method in methods:
        held = [run.metrics.get(split, {}).get("conformal") for run in method.runs]
        if not all(held):
            continue
        wanted |= {summary["wanted"] for summary in held}
        kinds = [k for k, found in held[0].items() if isinstance(found, Mapping)]
        for kind in kinds:
            cells = (
                _mean([summary[kind].get(name) for summary in held]) for name in SHOWN
            )
            rows.append((method.name, kind.replace("_", " "), *map(cell, cells)))
        sections.append(len(rows))
    if not rows:
        return None
    said = ", ".join(f"{100 * share:g} %" for share in sorted(wanted))
    columns = ("method", "sets", *map(title_of, SHOWN))
    title = f"{split}, conformal sets meant to cover {said}"
    return Table(title, columns, tuple(rows), tuple(sections))


def _mean(values: Sequence[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    plain = [v["value"] if isinstance(v, Mapping) else v for v in values]
    return None if None in plain else float(np.mean(plain))
