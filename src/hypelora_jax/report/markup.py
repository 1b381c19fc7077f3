"""Pieces of an HTML page: tables, pictures, configurations.

The page loads nothing from elsewhere.
"""

import base64
from collections.abc import Sequence
from html import escape

from hypelora_jax import files
from hypelora_jax.report.metric_tables import Table
from hypelora_jax.run import records
from hypelora_jax.run.results import Results

# Below 40rem a table becomes a list of cards, where each cell shows its column's name.
STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
p { max-width: 48rem }
p.note { font-size: .87rem; opacity: .85; margin: .4rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .55rem; text-align: right; vertical-align: top;
         border-bottom: 1px solid #8883 }
th { vertical-align: bottom; border-bottom: 2px solid currentColor }
td:first-child, th:first-child, table.config td { text-align: left }
td small { display: block; white-space: nowrap; opacity: .8 }
td:first-child { overflow-wrap: break-word; min-width: 5.5rem }
tr.minor td:first-child { padding-left: 1.7rem; font-style: italic }
tr.section td { border-bottom: 1px solid currentColor }
table.config td { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
tr.differs td { font-weight: bold }
div.wide { overflow-x: auto }
div.panels { display: grid; gap: .8rem;
             grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)) }
div.panels figure { margin: 0; max-width: 28rem }
img { width: 100%; background: white; border-radius: 4px; display: block }
summary { cursor: pointer }
@media (max-width: 40rem) {
  body { margin: 1rem auto }
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px;
          overflow: hidden }
  table, tbody, tr, td { display: block }
  tr { padding: .3rem 0 }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0;
       padding: .1rem 0; min-width: 0 }
  td:first-child { font-weight: bold }
  td::before { content: attr(data-name); opacity: .8;
                                 text-align: left }
  td:empty { display: none }
  td small { display: inline; margin-left: .4rem }
  tr.section td, tr.differs td { border: 0 }
  td:first-child::before { content: none }
  table.config td { text-align: right }
  tr.section { border-bottom: 1px solid currentColor; padding-bottom: .6rem }
  table.config tr { border-bottom: 1px solid #8883 }
}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole page; the parts of the body are already markup."""
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(body))


def table(content: Table, heading: str = "h3") -> str:
    """A table under its title; further lines of a cell are in small print."""
    rows = []
    for i, row in enumerate(content.rows, start=1):
        kind = "section" if i in content.sections else ""
        if row[0].startswith("minus "):
            kind = f"minor {kind}".strip()
        rows.append(_row(row, content.columns, kind))
    title = content.title[:1].upper() + content.title[1:]
    return (
        f"<{heading}>{escape(title)}</{heading}>"
        f'<div class="wide">{_table(content.columns, rows)}</div>'
    )


def panels(drawn: Sequence[tuple[str, bytes]]) -> str:
    """PNG pictures with their texts, as many in a row as the window has space for."""
    return f'<div class="panels">{"".join(_picture(*one) for one in drawn)}</div>'


def _picture(text: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img alt="{escape(text)}" src="{source}"></figure>'


def note(text: str) -> str:
    """A paragraph of small print."""
    return f'<p class="note">{escape(text)}</p>'


def _table(columns: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    opening = f'<table class="{kind}">' if kind else "<table>"
    body = "".join(rows)
    return f"{opening}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(cells: Sequence[str], columns: Sequence[str], kind: str = "") -> str:
    inner = "".join(
        f'<td data-name="{escape(name)}">{_cell(text)}</td>'
        for name, text in zip(columns, cells, strict=True)
    )
    return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


def _cell(text: str) -> str:
    first, *more = text.split("\n")
    small = "".join(f"<small>{escape(line)}</small>" for line in more)
    # one child, because in a card the cell is a flex box with the column's name at left
    return f"<span>{escape(first)}{small}</span>" if text else ""


def configs(runs: Sequence[Results]) -> str:
    """Every field of every run; fields that differ between runs come first, in bold."""
    flat = [records.flat(run.config) for run in runs]
    fields = dict.fromkeys(name for config in flat for name in config)
    columns = ("field", *(run.name for run in runs))
    differ, equal = [], []
    for name in fields:
        values = [files.to_json(c[name]) if name in c else "" for c in flat]
        if len(set(values)) == 1:
            equal.append(_row((name, *values), columns))
        else:
            differ.append(_row((name, *values), columns, "differs"))
    word = "fields that are equal" if differ else "all fields"
    closed = f"<details><summary>{word}</summary>{_wide(columns, equal)}</details>"
    return f"{_wide(columns, differ)}{closed}" if differ else closed


def _wide(columns: Sequence[str], rows: Sequence[str]) -> str:
    return f'<div class="wide">{_table(columns, rows, "config")}</div>'
