"""One self-contained HTML page that shows runs side by side."""

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from hypelora_jax.report import plots, tables
from hypelora_jax.report.runs import RunView, load_run

__all__ = ["RunView", "load_run", "write_figures", "write_report"]

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884 }
td:first-child, th:first-child, table.config td { text-align: left }
table.config td { font: 13px/1.4 ui-monospace, monospace; vertical-align: top;
                  overflow-wrap: anywhere }
tr.differs td { font-weight: bold }
tr.section td { border-bottom: 1px solid currentColor }
div.wide { overflow-x: auto }
img { max-width: 100%; background: white; border-radius: 4px }
summary { cursor: pointer }
"""


def write_report(runs: Sequence[RunView], output: epath.PathLike) -> None:
    """Write tables, reliability diagrams, curves and configs of runs as one HTML file.

    Args:
      runs: at least one; shown side by side in this order.
      output: the file; it needs nothing beside it. Folders are made.

    Raises:
      ValueError: no runs.
    """
    if not runs:
        raise ValueError("no runs; wanted at least one to report on")
    names = ", ".join(run.name for run in runs)
    body = [f"<h1>Calibration report: {escape(names)}</h1>"]
    splits = dict.fromkeys(split for run in runs for split in run.metrics)
    for split in splits:
        body.append(_table(tables.before_after(runs, split, tables.LONG)))
    body += [
        _section("Reliability", _reliability(runs)),
        _section("Curves", _curves(runs)),
    ]
    body.append(f"<h2>Configuration</h2>{_configs(runs)}")
    page = _PAGE.format(title=escape(names), style=STYLE, body="\n".join(body))
    output = epath.Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page)


def write_figures(run: RunView, folder: epath.PathLike) -> None:
    """Write reliability.png and curves.png of a run, as far as it has the data."""
    folder = epath.Path(folder)
    for name, figure in (
        ("reliability", _reliability([run])),
        ("curves", _curves([run])),
    ):
        if figure is not None:
            plots.save(figure, folder / f"{name}.png")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def _reliability(runs: Sequence[RunView]) -> Figure | None:
    panels = [panel for run in runs if (panel := plots.panel_of(run)) is not None]
    return plots.reliability(panels) if panels else None


def _curves(runs: Sequence[RunView]) -> Figure | None:
    held = [run for run in runs if run.curve]
    return plots.curves(held) if held else None


def _section(title: str, figure: Figure | None) -> str:
    if figure is None:
        return f"<h2>{title}</h2><p>No data in these runs.</p>"
    data = base64.b64encode(plots.png(figure)).decode()
    image = f'<img alt="{title}" src="data:image/png;base64,{data}">'
    return f'<h2>{title}</h2><div class="wide">{image}</div>'


def _row(cells: Sequence[str], tag: str = "td", kind: str = "") -> str:
    inner = "".join(f"<{tag}>{escape(text)}</{tag}>" for text in cells)
    return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


def _table(table: tables.Table) -> str:
    rows = [_row(table.columns, "th")]
    for i, row in enumerate(table.rows, start=1):
        rows.append(_row(row, kind="section" if i in table.sections else ""))
    title = escape(table.title.capitalize())
    return f'<h2>{title}</h2><div class="wide"><table>{"".join(rows)}</table></div>'


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    """Dotted path -> JSON of each leaf of nested dicts."""
    if not isinstance(tree, dict) or not tree:
        return {path: json.dumps(tree)}
    out = {}
    for name, value in tree.items():
        out |= _flat(value, f"{path}.{name}" if path else str(name))
    return out


def _configs(runs: Sequence[RunView]) -> str:
    """Every field of every run; fields in which the runs differ are bold and first."""
    flat = [_flat(run.config) for run in runs]
    fields = dict.fromkeys(name for config in flat for name in config)
    rows = {name: [config.get(name, "") for config in flat] for name in fields}
    same = {name for name, values in rows.items() if len(set(values)) == 1}
    head = _row(("field", *(run.name for run in runs)), "th")
    differing = [
        _row((n, *v), kind="differs") for n, v in rows.items() if n not in same
    ]
    equal = [_row((name, *values)) for name, values in rows.items() if name in same]
    table = f'<table class="config">{head}{"".join(differing + equal)}</table>'
    return (
        "<details open><summary>all fields; first, in bold, those that differ</summary>"
        f'<div class="wide">{table}</div></details>'
    )
