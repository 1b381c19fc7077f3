"""Writes compared series as tables for people and as one CSV file for programs."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypelora_jax.report.comparison import COMPARED, Cell, Row
from hypelora_jax.report.metric_tables import SCORES, Table, cell, title_of
from hypelora_jax.report.series import Series
from hypelora_jax.run.results import Results

SHOWN = (*SCORES, *COMPARED)
CSV: tuple[str, ...] = ("split", "stage", "method", "averages_over", "seeds", "n")
CSV += ("calibrator", "metric", "value", "low", "high", "spread")
CSV += ("difference", "difference_low", "difference_high", "difference_spread", "p")
AUDITED = ("accuracy", "nll", "ece", "brier")
# In the order of the tables; what each one answers with.
CONTROLS = {
    "matched": "the task's own condition",
    "static": "one adapter for all tasks",
    "description_only": "the description, without the text",
    "nearest": "the adapter of the nearest training task",
    "base_rate": "the shares of the classes in train",
    "mean": "the mean condition of training tasks",
    "shuffled": "the condition of another task",
    "nonsense": "the condition of a nonsense text",
    "random_vector": "a random vector",
    "paraphrased": "other words for the task",
    "negated": "the description of the opposite task",
}
SETS = ("coverage", "size", "single", "empty", "worst_class")
DESCRIBED = (
    "The distance is 1 minus the cosine of the adapter's condition and the nearest "
    "description of a training task. Confidence was measured around those; the "
    "larger the distance, the less is known about it. The NLL is that of the rows the "
    "adapter was tuned on, so it says little about others."
)


def table(title: str, rows: Sequence[Row]) -> Table:
    """Methods by metrics, each followed by its difference to the first method."""
    names = [name for name in SHOWN if any(name in row.cells for row in rows)]
    members = any(row.averaged != "-" for row in rows)  # leave out a column of "-"
    out, sections = [], []
    for row in rows:
        name = row.name if row.seeds == 1 else f"{row.name}\n{row.seeds} seeds"
        cells = (_value(row.cells.get(key)) for key in names)
        averaged = (row.averaged,) * members
        out.append((name, *averaged, row.calibrator, str(row.n or "-"), *cells))
        if row.differences:
            cells = (_difference(row.differences.get(key)) for key in names)
            blank = ("",) * (2 + members)
            out.append((f"minus {rows[0].name}", *blank, *cells))
        sections.append(len(out))
    columns = ("method", *("averages over",) * members, "calibrator", "N")
    columns += tuple(map(title_of, names))
    return Table(title, columns, tuple(out), tuple(sections))


def _value(found: Cell | None) -> str:
    if found is None:
        return "-"
    spread = "" if found.spread is None else f"\n± {found.spread:.4f}"
    return f"{cell(found.value)}{spread}{_interval(found)}"


def _difference(found: Cell | None) -> str:
    if found is None:
        return "-"
    p = "" if found.p is None else f"\n{p_value(found.p)}"
    return f"{found.value:+.4f}{_interval(found, '+')}{p}"


def _interval(found: Cell, sign: str = "") -> str:
    if found.low is None:
        return ""
    return f"\n[{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def p_value(p: float) -> str:
    """A p-value with three decimals, or a bound if it is below 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def checks(title: str, rows: Sequence[Row]) -> Table | None:
    """ECE next to the noise floor and the consistency test; None without them.

    The noise floor is the ECE that a perfectly calibrated model would show on as many
    examples; p is the share of such models that show more than this one.
    """
    if not any("ece_noise_floor" in row.cells for row in rows):
        return None
    out = []
    for row in rows:
        ece, floor = row.cells.get("ece"), row.cells.get("ece_noise_floor")
        p = row.cells.get("consistency_p")
        numbers = [cell(None if x is None else x.value) for x in (ece, floor)]
        out.append((row.name, row.calibrator, *numbers, *_verdict(p)))
    columns = ("method", "calibrator", "ECE", "noise floor", "p", "miscalibrated?")
    return Table(title, columns, tuple(out))


def _verdict(p: Cell | None) -> tuple[str, str]:
    if p is None:
        return "-", "-"
    if p.values:  # p-values must not be averaged, so seeds have no mean here
        low = sum(value < 0.05 for value in p.values)
        ends = f"{min(p.values):.3f} to {max(p.values):.3f}"
        return ends, f"yes for {low} of {len(p.values)} seeds"
    said = "yes" if p.value < 0.05 else "not to be told from noise"
    return ("< 0.001" if p.value < 0.001 else f"{p.value:.3f}"), said


def sets(methods: Sequence[Series], split: str) -> Table | None:
    """Coverage and size by series and kind of set; None if no run has them.

    They are read from `conformal` in the split's metrics.json, which has the wanted
    coverage, and for each kind its coverage, mean size, shares of single and of empty
    sets, and coverage of the worst class. Several seeds are averaged and have no
    intervals.
    """
    rows: list[tuple[str, ...]] = []
    sections: list[int] = []
    wanted: set[float] = set()
    for method in methods:
        every = [run.metrics.get(split, {}).get("conformal") for run in method.seeds]
        summaries = [one for one in every if one]
        if len(summaries) < len(every):
            continue
        wanted |= {summary["wanted"] for summary in summaries}
        kinds = [k for k, found in summaries[0].items() if isinstance(found, Mapping)]
        for kind in kinds:
            cells = (
                _mean([summary[kind].get(name) for summary in summaries])
                for name in SETS
            )
            rows.append((method.name, kind.replace("_", " "), *map(cell, cells)))
        sections.append(len(rows))
    if not rows:
        return None
    said = ", ".join(f"{100 * share:g} %" for share in sorted(wanted))
    columns = ("method", "sets", *map(title_of, SETS))
    title = f"{split}, conformal sets meant to cover {said}"
    return Table(title, columns, tuple(rows), tuple(sections))


def _mean(values: Sequence[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    plain = [v["value"] if isinstance(v, Mapping) else v for v in values]
    return None if None in plain else float(np.mean(plain))


def to_csv(rows: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """CSV with a line for each split, stage, method and metric, in full precision.

    Args:
      rows: (split, stage) -> compared rows. Unknown values are left empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV)
    for (split, stage), compared in rows.items():
        for row in compared:
            about = (split, stage, row.name, row.averaged)
            about_seeds = (row.seeds, row.n, row.calibrator)
            for name, found in row.cells.items():
                if name == "consistency_p" and found.values:
                    continue  # p-values must not be averaged
                other = row.differences.get(name)
                difference: tuple[float | None, ...] = (None,) * 5
                if other is not None:
                    difference = (other.value, other.low, other.high)
                    difference += (other.spread, other.p)
                ends = (found.low, found.high, found.spread)
                writer.writerow(
                    (*about, *about_seeds, name, found.value, *ends, *difference)
                )
    return out.getvalue()


def audits(found: Mapping[str, Any]) -> list[Table]:
    """Return the tables of controls, and of oracles and deltas if there are any.

    `found` is what `evaluate.audit.auditing.audit` returns.
    """
    controls, margins = found["controls"], found["margins"]
    columns = ("answered with", *map(title_of, AUDITED), "NLL minus matched")
    rows = []
    for name, about in CONTROLS.items():
        if name in controls:
            margin = margins.get(name)
            last = "" if margin is None else cell(margin["nll"])
            cells = (cell(controls[name][metric]) for metric in AUDITED)
            rows.append((f"{name}: {about}", *cells, last))
    title = f"audit of {len(found['tasks'])} tasks of {found['split']}"
    out = [Table(title, columns, tuple(rows))]
    if found["oracles"]:
        out.append(_oracles(found["oracles"]))
    if found.get("delta_variance"):  # audits of older versions have none
        out.append(_deltas(found["delta_variance"]))
    return out


def _deltas(found: Mapping[str, Any]) -> Table:
    """Return a table of how much the deltas of different conditions differ."""
    shares = {**found["modules"], "all": found["whole"]}
    title = f"deltas of the conditions of {found['conditions']} tasks"
    columns = ("module", "share that varies between them")
    rows = tuple((name, cell(share)) for name, share in shares.items())
    return Table(title, columns, rows, (len(rows) - 1,))


def described(runs: Sequence[Results]) -> Table | None:
    """Return a table of the adapters that were made from descriptions; None without."""
    rows = []
    for run in runs:
        if (about := run.config.get("described")) is None:
            continue
        tuned, loss = about.get("tuned"), "-"
        if tuned:
            loss = " to ".join(cell(tuned["loss"][x]) for x in ("before", "after"))
            tuned = f"{tuned['what']}, on {tuned['examples']} rows"
        own = (about["description"][:200], about["nearest"], cell(about["distance"]))
        rows.append((run.name, *own, tuned or "-", loss))
    if not rows:
        return None
    columns = ("run", "description", "nearest training task", "distance", "tuned")
    return Table(
        "adapters of described tasks", (*columns, "NLL of its rows"), tuple(rows)
    )


def _oracles(found: Mapping[str, Any]) -> Table:
    """Return a table of adapters that were trained on the task itself."""
    columns = ("task", "oracle, accuracy", "matched, accuracy", "NLL, matched minus")
    rows = [
        (
            name,
            cell(one["oracle"]["accuracy"]),
            cell(one["matched"]["accuracy"]),
            cell(one["margin"]["nll"]),
        )
        for name, one in found.items()
    ]
    return Table("oracles: adapters trained on the task", columns, tuple(rows))
