"""Writes a report as one self-contained HTML page, with tables and figures as files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from etils import epath
from matplotlib.figure import Figure

from hypelora_jax.errors import UserError
from hypelora_jax.report import (
    comparison,
    curves,
    figures,
    markup,
    metric_tables,
    reliability,
    result_tables,
)
from hypelora_jax.report.series import Series
from hypelora_jax.run.results import Results

FORMATS = ("html", "md", "csv", "tex", "png")
FIGURES = {
    "reliability": "Reliability",
    "risk_coverage": "Risk and coverage",
    "curves": "Training",
}
Pictures = list[tuple[str, bytes]]  # alternative text, PNG
HOW_TO_READ = {
    "methods": (
        "In brackets: 95 % intervals. With one seed they are over examples "
        "(bootstrap), and the difference to the first method is paired on the same "
        "examples; with 0 replicas, as in the report that training writes, there are "
        "no intervals. With several seeds: mean ± standard deviation, interval and "
        "difference over seeds (Student's t, pairs of equal seeds); without such "
        "pairs there is no interval. p is two-sided, at least 2 / (1 + replicas), and "
        "not corrected for the number of comparisons. Lower is better, except for "
        "scores and accuracy. Where the true ECE is near 0 no interval of the ECE "
        "covers it: see the noise floor."
    ),
    "checks": (
        "The noise floor is the ECE that a perfectly calibrated model would show on "
        "as many examples; p is the share of such models that show at least this ECE."
    ),
    "reliability": (
        "Each point is a bin: its mean confidence, its accuracy, and as area its "
        "share of examples. The band is the 95 % bootstrap interval of the bin's "
        "accuracy. Hollow points have fewer than ten examples, or are all right or "
        "all wrong; their bar is the Wilson interval. Squares and broken lines show "
        "the model as trained, circles and full lines the model after the post-hoc "
        "calibrator."
    ),
    "risk_coverage": (
        "Errors among the answers that remain when only the most confident are given "
        "(20 or more). The probabilities are those that predict gives."
    ),
    "sets": (
        "Sets contain the true class with at least the coverage asked for, on average "
        "over examples like those of the calibration split, on which their threshold "
        "was fitted. The smaller the sets, the more the probabilities say."
    ),
    "audit": (
        "An audit answers the rows of tasks with other conditions than their own. The "
        "intervals are 95 % bootstrap intervals over tasks and their rows; those of "
        "differences are paired. The condition matters only if the task's own one "
        "beats static, shuffled, junk and description_only. Deltas of a network that "
        "ignores it do not vary: their share is 0."
    ),
    "described": result_tables.DESCRIBED,
    "curves": (
        "Train loss: a point for each logged step, and the running mean of as many "
        "points as the legend says. Chosen: the step whose parameters were kept; seeds "
        "have a star each. Panels share their axes."
    ),
}


class _Content(NamedTuple):
    """Content that all formats of a report share."""

    title: str
    rows: Mapping[tuple[str, str], Sequence[comparison.Row]]  # by (split, stage)
    sections: Sequence[tuple[metric_tables.Table, str]]  # table, key of HOW_TO_READ


def write_report(
    series: Sequence[Series],
    output: epath.PathLike,
    split: str = "validation",
    replicas: int = 1000,
    formats: Iterable[str] = FORMATS,
) -> None:
    """Write a report that compares runs with the first one.

    Args:
      series: at least one; shown in this order.
      output: the HTML file, which needs no other file. The other formats are written to
        the same folder under the same name: NAME.md, NAME.csv, NAME.tex,
        NAME_reliability.png, NAME_risk_coverage.png, NAME_curves.png. The folder is
        created.
      split: the split whose predictions are compared and drawn. If it is validation and
        no run has it, the first split of the runs is taken.
      replicas: number of bootstrap replicas; 0 leaves out intervals over examples.
      formats: any of FORMATS.

    Raises:
      ValueError: `series` is empty.
      UserError: a format or the split is unknown, replicas is negative, or the output
        does not end in .html.
    """
    if not series:
        raise ValueError("there are no runs; expected at least one to report on")
    output, formats = epath.Path(output), tuple(formats)
    if wrong := [name for name in formats if name not in FORMATS]:
        raise UserError(
            f"format {wrong[0]!r} is unknown; expected some of {', '.join(FORMATS)}"
        )
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"output is {output}; expected a name that ends in .html")
    if replicas < 0:
        raise UserError(f"replicas is {replicas}; expected 0 or more")
    split = _split(series, split)
    content = _content(series, split, replicas)
    drawn = _draw(series, split) if {"html", "png"} & {*formats} else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[], str]] = {
        "html": lambda: _page(content, drawn, series, split),
        "md": lambda: _markdown(content),
        "csv": lambda: result_tables.to_csv(content.rows),
        "tex": lambda: "\n".join(
            metric_tables.to_latex(t) for t, _ in content.sections
        ),
    }
    for name in formats:
        if name != "png":
            suffix = output.suffix if name == "html" else f".{name}"
            text = writers[name]()
            # a folder's name need not be UTF-8
            output.with_suffix(suffix).write_bytes(text.encode(errors="replace"))
    if "png" in formats:
        _write_pictures(drawn, series, split, output)


def _split(methods: Sequence[Series], wanted: str) -> str:
    """The wanted split, or the first split of the runs if validation is missing."""
    runs = [run for method in methods for run in method.seeds]
    there = dict.fromkeys(
        split for run in runs for split in (*run.predictions, *run.metrics)
    )
    if wanted in there or not there:
        return wanted
    if wanted != "validation":
        raise UserError(
            f"no run has the split {wanted!r}; expected one of {', '.join(there)}, or "
            f"run hypelora evaluate --split={wanted} first"
        )
    return next(iter(there))


def _content(methods: Sequence[Series], split: str, replicas: int) -> _Content:
    """Tables that compare the split, then its checks and conformal sets."""
    calibrated = comparison.has_calibrated(methods, split)
    stages = comparison.STAGES if calibrated else comparison.STAGES[:1]
    rows, sections = {}, []
    for stage in stages:
        compared = comparison.compare(methods, split, stage, replicas)
        if compared:
            rows[split, stage] = compared
            sections.append(
                (result_tables.table(f"{split}, {stage}", compared), "methods")
            )
    for (_, stage), compared in rows.items():
        checked = result_tables.checks(
            f"{split}, {stage}: is the error noise?", compared
        )
        sections += [(checked, "checks")] if checked else []
    covered = result_tables.sets(methods, split)
    sections += [(covered, "sets")] if covered else []
    sections += [(table, "audit") for table in _audits(methods)]
    made = result_tables.described(_named(methods))
    sections += [(made, "described")] if made else []
    names = ", ".join(method.name for method in methods)
    return _Content(f"Calibration report: {names}", rows, sections)


def _audits(methods: Sequence[Series]) -> Iterator[metric_tables.Table]:
    """Yield the tables of each run whose condition was audited, with the verdict."""
    for run in _named(methods):
        if run.audit is not None:
            for table in result_tables.audits(run.audit):
                title = f"{run.name}, {table.title}: {run.audit['line']}"
                yield table._replace(title=title)


def _page(
    content: _Content,
    drawn: Mapping[str, Pictures],
    methods: Sequence[Series],
    split: str,
) -> str:
    body = [f"<h1>{escape(content.title)}</h1>", *_sections(content)]
    for name, pictures in drawn.items():
        title = FIGURES[name] + ("" if name == "curves" else f", {split}")
        body.append(f"<h2>{escape(title)}</h2>")
        body.append(markup.panels(pictures) if pictures else NOTHING)
        body += [markup.note(HOW_TO_READ[name])] if pictures else []
    runs = _named(methods)
    body.append("<h2>All metrics</h2>")
    splits = dict.fromkeys(name for run in runs for name in run.metrics)
    body += [markup.table(metric_tables.every(runs, name)) for name in splits]
    body += [] if splits else [NOTHING]
    body.append(f"<h2>Configuration</h2>{markup.configs(runs)}")
    return markup.page(content.title, body)


NOTHING = "<p>No data in these runs.</p>"


def _sections(content: _Content) -> list[str]:
    out = ["<h2>Methods</h2>"]
    for i, (table, key) in enumerate(content.sections):
        out.append(markup.table(table))
        if key not in [k for _, k in content.sections[i + 1 :]]:  # once, after the last
            out.append(markup.note(HOW_TO_READ[key]))
    return out if content.sections else [*out, NOTHING]


def _named(methods: Sequence[Series]) -> list[Results]:
    """All runs, each seed separately, named after their methods."""
    return [
        run._replace(name=m.name if len(m.seeds) == 1 else f"{m.name}/{run.name}")
        for m in methods
        for run in m.seeds
    ]


def _markdown(content: _Content) -> str:
    parts = [f"# {content.title}\n"]
    for i, (table, key) in enumerate(content.sections):
        parts.append(f"## {table.title}\n\n{metric_tables.to_markdown(table)}")
        if key not in [k for _, k in content.sections[i + 1 :]]:
            parts.append(f"{HOW_TO_READ[key]}\n")
    return "\n".join(parts)


def _draw(methods: Sequence[Series], split: str) -> dict[str, Pictures]:
    """Pictures by key of FIGURES: one for each series, but a single one for risk."""
    risk = curves.risk_coverage(methods, split)
    names = ", ".join(method.name for method in methods)
    trained = [m for m in methods if any(run.curve for run in m.seeds)]
    tops = curves.highest(trained)
    drawn: dict[str, list[tuple[str, Figure | None]]] = {
        "reliability": [*_diagrams(methods, split)],
        "risk_coverage": [(f"Risk over coverage of {names}", risk)],
        "curves": [
            (f"Loss and ECE of {m.name} over epochs", curves.training([m], tops))
            for m in trained
        ],
    }
    return {
        name: [(text, figures.png(figure)) for text, figure in found if figure]
        for name, found in drawn.items()
    }


def _diagrams(methods: Sequence[Series], split: str) -> Iterator[tuple[str, Figure]]:
    """Yield (text, reliability diagram) of each series that has one, on equal axes."""
    panels = _panels(methods, split)
    limits = reliability.limits_of(panels) if panels else None
    for panel in panels:
        errors = ", ".join(f"{s.name} ECE {s.ece:.4f}" for s in panel.stages)
        figure = reliability.diagram([panel], limits=limits)
        yield f"Reliability diagram of {panel.title}: {errors}", figure


def _panels(methods: Sequence[Series], split: str) -> list[reliability.Panel]:
    panels = [reliability.panel_of(method, split) for method in methods]
    return [panel for panel in panels if panel is not None]


def _write_pictures(
    pictures: Mapping[str, Pictures],
    methods: Sequence[Series],
    split: str,
    output: epath.Path,
) -> None:
    """Write NAME_KIND.png next to the page NAME.html, with all panels of a kind."""
    together: dict[str, Callable[[], Figure | None]] = {
        "reliability": lambda: reliability.diagram(_panels(methods, split)),
        "curves": lambda: curves.training(methods),
    }
    for name, panels in pictures.items():
        if not panels:
            continue
        figure = together[name]() if len(panels) > 1 else None
        data = panels[0][1] if figure is None else figures.png(figure)
        output.with_name(f"{output.stem}_{name}.png").write_bytes(data)
