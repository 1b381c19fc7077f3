"""A report: one self-contained HTML page, and its tables and figures as files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from etils import epath

from hypelora_jax.errors import UserError
from hypelora_jax.report import (
    comparison,
    markup,
    pictures,
    result_tables,
    sets,
    tables,
)
from hypelora_jax.report.runs import Method, RunView, load, load_all, load_run

__all__ = ["Method", "RunView", "load", "load_all", "load_run"]
__all__ += ["write_report"]

FORMATS = ("html", "md", "csv", "tex", "png")
HOW_TO_READ = {
    "methods": (
        "In brackets: 95 % intervals. One seed: over examples (bootstrap), and the "
        "difference to the first method is paired on the same examples; none with "
        "0 replicas, as in the report that training writes. Several seeds: mean ± "
        "standard deviation, interval and difference over seeds (Student's t, pairs "
        "of equal seeds). No interval: no pairs. p is two-sided, at least 2 / (1 + "
        "replicas), and not corrected for the number of comparisons. Lower is better "
        "but for scores and accuracy. Where the true ECE is near 0 no interval of "
        "the ECE covers it: see the noise floor."
    ),
    "checks": (
        "The noise floor is the ECE that a perfectly calibrated model would show on "
        "as many examples; p is the share of such models that show at least this ECE."
    ),
    "reliability": (
        "A point is a bin: mean confidence, accuracy, area by its share of examples. "
        "Band: 95 % bootstrap interval of the bin's accuracy. Hollow: fewer than ten "
        "examples, or all right or all wrong; the bar is the Wilson interval. Squares "
        "and broken lines: as trained; circles and full lines: after the post-hoc "
        "calibrator."
    ),
    "risk_coverage": (
        "Errors among the answers that remain when only the most confident are given "
        "(20 or more). Probabilities are those that predict gives."
    ),
    "sets": (
        "Sets hold the true class with at least the coverage asked for, on average "
        "over examples like those of the calibration split, on which their threshold "
        "was fitted; the smaller, the more the probabilities say."
    ),
    "curves": (
        "Chosen: the step whose parameters were kept; seeds have a star each. Panels "
        "share their axes."
    ),
}


class _Content(NamedTuple):
    """What the formats of a report have in common."""

    title: str
    rows: Mapping[tuple[str, str], Sequence[comparison.Row]]  # of a split and stage
    sections: Sequence[tuple[tables.Table, str]]  # tables and how to read them


def write_report(
    runs: Sequence[RunView | Method],
    output: epath.PathLike,
    split: str = "validation",
    replicas: int = 1000,
    formats: Iterable[str] = FORMATS,
) -> None:
    """Write a report on runs, the first one being what the others are compared with.

    Args:
      runs: at least one; shown in this order.
      output: the HTML file; it needs nothing beside it. The other formats stand beside
        it under the same name: NAME.md, NAME.csv, NAME.tex, NAME_reliability.png,
        NAME_risk_coverage.png, NAME_curves.png. Folders are made.
      split: whose predictions are compared and drawn; without any of validation, the
        first one that there is.
      replicas: of the bootstrap; 0 leaves intervals over examples out.
      formats: of FORMATS.

    Raises:
      ValueError: no runs.
      UserError: an unknown format or split, or an output that does not end in .html.
    """
    if not runs:
        raise ValueError("no runs; wanted at least one to report on")
    output, formats = epath.Path(output), tuple(formats)
    if wrong := [name for name in formats if name not in FORMATS]:
        raise UserError(f"format {wrong[0]!r} is unknown; wanted {', '.join(FORMATS)}")
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"output is {output}; wanted a name that ends in .html")
    if replicas < 0:
        raise UserError(f"replicas is {replicas}; wanted 0 or more")
    methods = [
        run if isinstance(run, Method) else Method(run.name, (run,)) for run in runs
    ]
    split = _split(methods, split)
    content = _content(methods, split, replicas)
    drawn = pictures.draw(methods, split) if {"html", "png"} & {*formats} else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[], str]] = {
        "html": lambda: _page(content, drawn, methods, split),
        "md": lambda: _markdown(content),
        "csv": lambda: result_tables.to_csv(content.rows),
        "tex": lambda: "\n".join(tables.to_latex(t) for t, _ in content.sections),
    }
    for name in formats:
        if name != "png":
            suffix = output.suffix if name == "html" else f".{name}"
            output.with_suffix(suffix).write_bytes(writers[name]().encode())
    if "png" in formats:
        pictures.write(drawn, methods, split, output)


def _split(methods: Sequence[Method], wanted: str) -> str:
    """The wanted split; without any of validation, the first split there is."""
    runs = [run for method in methods for run in method.runs]
    there = dict.fromkeys(
        split for run in runs for split in (*run.arrays, *run.metrics)
    )
    if wanted in there or not there:
        return wanted
    if wanted != "validation":
        raise UserError(
            f"no run has the split {wanted!r}; wanted one of {', '.join(there)}, or "
            f"run evaluate --split={wanted} first"
        )
    return next(iter(there))


def _content(methods: Sequence[Method], split: str, replicas: int) -> _Content:
    """Tables of the split compared, then of every split as the files have it."""
    calibrated = comparison.has_calibrated(methods, split)
    stages = comparison.STAGES if calibrated else comparison.STAGES[:1]
    rows, sections = {}, []
    for stage in stages:
        held = comparison.compare(methods, split, stage, replicas)
        if held:
            rows[split, stage] = held
            sections.append((result_tables.table(f"{split}, {stage}", held), "methods"))
    for (_, stage), held in rows.items():
        checked = result_tables.checks(f"{split}, {stage}: is the error noise?", held)
        sections += [(checked, "checks")] if checked else []
    covered = sets.table(methods, split)
    sections += [(covered, "sets")] if covered else []
    names = ", ".join(method.name for method in methods)
    return _Content(f"Calibration report: {names}", rows, sections)


def _page(
    content: _Content,
    drawn: Mapping[str, pictures.Pictures],
    methods: Sequence[Method],
    split: str,
) -> str:
    body = [f"<h1>{escape(content.title)}</h1>", *_sections(content)]
    for name, held in drawn.items():
        title = pictures.FIGURES[name] + ("" if name == "curves" else f", {split}")
        body.append(f"<h2>{escape(title)}</h2>")
        body.append(markup.panels(held) if held else NOTHING)
        body += [markup.note(HOW_TO_READ[name])] if held else []
    runs = _named(methods)
    body.append("<h2>All metrics</h2>")
    held = dict.fromkeys(name for run in runs for name in run.metrics)
    for name in held:
        body.append(markup.table(tables.every(runs, name)))
    body += [] if held else [NOTHING]
    body.append(f"<h2>Configuration</h2>{markup.configs(runs)}")
    return markup.page(content.title, body)


NOTHING = "<p>No data in these runs.</p>"


def _sections(content: _Content) -> list[str]:
    out = ["<h2>Methods</h2>"]
    for i, (table, key) in enumerate(content.sections):
        out.append(markup.table(table))
        if key not in [k for _, k in content.sections[i + 1 :]]:  # once, below the last
            out.append(markup.note(HOW_TO_READ[key]))
    return out if content.sections else [*out, NOTHING]


def _named(methods: Sequence[Method]) -> list[RunView]:
    """All runs, named as their methods, each seed on its own."""
    return [
        run._replace(name=m.name if len(m.runs) == 1 else f"{m.name}/{run.name}")
        for m in methods
        for run in m.runs
    ]


def _markdown(content: _Content) -> str:
    parts = [f"# {content.title}\n"]
    for i, (table, key) in enumerate(content.sections):
        parts.append(f"## {table.title}\n\n{tables.to_markdown(table)}")
        if key not in [k for _, k in content.sections[i + 1 :]]:
            parts.append(f"{HOW_TO_READ[key]}\n")
    return "\n".join(parts)
