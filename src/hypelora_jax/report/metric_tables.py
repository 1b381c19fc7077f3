"""Tables of metrics as data, and their terminal, Markdown and LaTeX forms."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import rich.box
import rich.table
import rich.text

from hypelora_jax.calibration import calibrators
from hypelora_jax.run.results import Results

# Scores of tasks and of adapters, if there are any.
SCORES = ("mcc", "f1", "pearson", "spearman", "mse", "delta_r2", "delta_cosine")
SHORT = (*SCORES, "accuracy", "nll", "ece", "brier")  # fits 80 columns
NUMBERS = 66  # letters of a terminal's 80 that numbers may take; names have the rest
LONG: tuple[str, ...] = (*SHORT, "ece_debiased", "classwise_ece", "mce", "ace")
LONG += ("tace_0.01", "soft_tv", "soft_kl", "soft_brier")
TITLES = {"nll": "NLL", "ece": "ECE", "mce": "MCE", "ace": "ACE", "mcc": "MCC"}
TITLES |= {"classwise_ece": "class-wise ECE", "tace_0.01": "TACE(.01)", "f1": "F1"}
TITLES |= {"mse": "MSE", "ece_debiased": "ECE, debiased", "smooth_ece": "smooth ECE"}
TITLES |= {"aurc": "AURC", "soft_tv": "TV to raters", "soft_kl": "KL to raters"}
TITLES |= {"soft_brier": "Brier to raters", "delta_r2": "R² of deltas"}


class Table(NamedTuple):
    """Cells as text, which may have several lines.

    `sections` has the numbers of the rows after which a rule is drawn, from 1.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sections: tuple[int, ...] = ()


def cell(value: Any) -> str:
    """Text of a metric: a number, `{"value", "low", "high"}`, or None if absent."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{cell(value['value'])} [{cell(value['low'])}, {cell(value['high'])}]"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def title_of(name: str) -> str:
    """Heading of a metric: "NLL" for nll."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _present(metrics: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    metrics = list(metrics)
    return [name for name in names if any(name in m for m in metrics)]


def of_metrics(
    title: str, named: Mapping[str, Mapping[str, Any]], names: Iterable[str] = SHORT
) -> Table:
    """One row for each named set of metrics.

    Args:
      title: title of the table.
      named: row's name -> metrics by name.
      names: the metrics to show; those that no row has are left out.
    """
    names = _present(named.values(), names)
    rows = tuple(
        (name, *(cell(metrics.get(key)) for key in names))
        for name, metrics in named.items()
    )
    return Table(title, ("run", *map(title_of, names)), rows)


def before_after(
    runs: Iterable[Results], split: str = "validation", names: Iterable[str] = SHORT
) -> Table:
    """Runs by metrics, with a second row for each run that has a fitted calibrator.

    Runs without metrics of the split are left out.
    """
    shown = [(run, run.metrics[split]) for run in runs if split in run.metrics]
    names = _present((m for _, m in shown), names)
    rows, sections = [], []
    for run, metrics in shown:
        rows.append((run.name, "-", *(cell(metrics.get(key)) for key in names)))
        if "calibrated" in metrics:
            after = {**metrics, **metrics["calibrated"]}
            state = run.calibrator
            kind = "-" if state is None else calibrators.describe(state)
            rows.append(("", kind, *(cell(after.get(key)) for key in names)))
        sections.append(len(rows))
    columns = ("run", "calibrator", *map(title_of, names))
    title = f"{split}, before and after calibration"
    return Table(title, columns, (*rows,), (*sections,))


def every(runs: Iterable[Results], split: str) -> Table:
    """All metrics of a split by their names in metrics.json, one row for each.

    Each run has a column, and a run with a fitted calibrator has a second one.
    """
    named: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        if (values := run.metrics.get(split)) is None:
            continue
        named[run.name] = values
        if "calibrated" in values:
            state = run.calibrator
            kind = "calibrated" if state is None else calibrators.describe(state)
            named[f"{run.name}, {kind}"] = {**values, **values["calibrated"]}
    keys = dict.fromkeys(LONG) | {k: None for m in named.values() for k in m}
    names = [k for k in keys if any(_number(m.get(k)) for m in named.values())]
    rows = tuple((key, *(cell(m.get(key)) for m in named.values())) for key in names)
    return Table(split, ("metric", *named), rows)


def _number(value: Any) -> bool:
    """Whether a value of metrics.json is a metric, perhaps with an interval."""
    if isinstance(value, Mapping):
        return "value" in value and "low" in value
    return isinstance(value, int | float)


def to_rich(table: Table) -> rich.table.Table:
    """Convert to a `rich` table: first column left-aligned, numbers right-aligned.

    Where the terminal is too narrow, the first column has several lines, and the others
    too if they are wider than NUMBERS together.
    """
    lengths = [max(map(len, cells)) + 2 for cells in zip(*table.rows, strict=True)]
    whole = sum(lengths[1:]) <= NUMBERS
    title = rich.text.Text(table.title, "table.title")  # disables markup, as below
    out = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
    for i, column in enumerate(table.columns):
        heading = rich.text.Text(column)
        out.add_column(
            heading,
            justify="right" if i else "left",
            no_wrap=i > 0 and whole,
            overflow="fold",
        )
    for i, row in enumerate(table.rows, start=1):
        cells = [rich.text.Text(text) for text in row]  # Text disables markup in names
        out.add_row(*cells, end_section=i in table.sections)
    return out


def to_markdown(table: Table) -> str:
    """Table in GitHub's Markdown, without its title."""
    rule = ("---", *["---:"] * (len(table.columns) - 1))
    lines = (table.columns, rule, *table.rows)
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\n": " "}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$", ">": "$>$"}


def to_latex(table: Table) -> str:
    """Table as a LaTeX `table`, which needs booktabs; a rule ends each section."""
    head, *body = [" & ".join(map(_tex, row)) for row in (table.columns, *table.rows)]
    lines = [r"\begin{table}", rf"\caption{{{_tex(table.title)}}}", r"\centering"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [rf"{head} \\", r"\midrule"]
    for i, row in enumerate(body, start=1):
        lines.append(rf"{row} \\")
        if i in table.sections and i < len(body):
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    # LaTeX would read a cell that begins with [ as an option of the line break before
    escaped = "".join(LATEX.get(c, c) for c in text)
    return f"{{{escaped}}}" if escaped.startswith("[") else escaped
