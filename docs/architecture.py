"""Draws the packages and their imports into docs/architecture.md.

    python docs/architecture.py

The drawing lies between two comments of the page. A test compares it with the code,
so the page cannot say something else than the imports do.
"""

import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import source_tree  # noqa: E402

PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- drawing: written by docs/architecture.py -->"
END = "<!-- end of the drawing -->"
WIDTH = 66


def drawing(graph: dict[str, set[str]]) -> str:
    """Layers as rows of boxes, top to bottom, then the arrows of each unit."""
    layers = source_tree.LAYERS[::-1]
    order = [unit for layer in layers for unit in layer]
    arrow = [f"{'▼':^{WIDTH}}".rstrip()]
    rows = [_boxes(layers[0])]
    for layer in layers[1:]:
        rows += [arrow, _boxes(layer)]
    lines = [line for row in rows for line in row] + [""]
    for unit in order:
        targets = [name for name in order if name in graph[unit]]
        if targets:
            lines += _arrows(unit, targets)
    return "\n".join(lines)


def page(text: str, graph: dict[str, set[str]]) -> str:
    """The page with the drawing of the graph in place of the one it holds.

    Raises:
      ValueError: the page does not have the two comments once and in this order.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end or BEGIN in after:
        raise ValueError(f"{PAGE.name} needs one line {BEGIN!r} and then one {END!r}")
    return f"{before}{begin}\n```text\n{drawing(graph)}\n```\n\n{end}{after}"


def _boxes(names: tuple[str, ...]) -> list[str]:
    """A row of boxes, three lines."""
    widths = [len(name) + 2 for name in names]
    lines = (
        " ".join(f"┌{'─' * width}┐" for width in widths),
        " ".join(f"│ {name} │" for name in names),
        " ".join(f"└{'─' * width}┘" for width in widths),
    )
    return [f"{line:^{WIDTH}}".rstrip() for line in lines]


def _arrows(unit: str, targets: list[str]) -> list[str]:
    """`unit ──▶ targets`, wrapped."""
    first = f"{unit:>11} ──▶ "
    return textwrap.wrap(
        " ".join(targets),
        width=WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
    )


if __name__ == "__main__":
    GRAPH = source_tree.unit_graph(source_tree.sources())
    PAGE.write_text(page(PAGE.read_text(), GRAPH))
