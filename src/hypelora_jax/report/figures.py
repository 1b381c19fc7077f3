"""Common parts of all figures of a report: marks, a grid of panels, PNG files.

Figures are plain `Figure` objects that Agg renders, so they need no display and no
global state of pyplot. Each series has a line style and a marker as well as a colour,
and the colours differ in lightness, so that a black and white print can be read.
"""

import io
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BEFORE, AFTER, INK, PALE = "#e07b39", "#00506b", "#444444", "#8d96a3"
GRID = "#e6e6e6"
DASHED = (0, (4, 3))
COLORS = ("#00506b", "#e07b39", "#5b3a8c", "#3aa17e", "#a3224a", "#8a8a3a")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1, 2)))
DASHES += ((0, (3, 1.5)), (0, (10, 1.5, 1, 1.5, 1, 1.5)))
MARKERS = "os^DvPX*"
COLUMNS = 3  # panels in a row of a PNG file
WIDTH = 3.9  # width of a panel in inches
DPI = 160  # a panel has 672 dots; a page shows it 340 to 450 pixels wide


# Names are shown as they are. Otherwise matplotlib would set what is between two $ as a
# formula, and a user's matplotlibrc could set all text in LaTeX, where _ is an error.
LITERAL: Any = {"text.parse_math": False, "text.usetex": False}
LINE, LINES = 40, 8  # small letters in a line of a name, and its most lines
HIDDEN = "_"  # matplotlib leaves labels that begin so out of legends
NOTHING_WIDE = "\u200b"  # a space of no width


def named(name: str, more: str = "") -> str:
    """Return the name of a run, and `more` behind it, as text of a figure.

    A long name takes several lines, and the middle of a very long one is left out.
    Control characters and bytes that are not UTF-8 are shown by their escapes, because
    no font has them. Every name that comes from outside goes through this function.
    """
    shown = "".join(map(_visible, name))
    lines = [line for part in (shown + more).split("\n") for line in _lines(part)]
    if len(lines) > LINES:
        half = (LINES - 1) // 2
        lines = [*lines[:half], "...", *lines[-half:]]
    first = NOTHING_WIDE if shown.startswith(HIDDEN) else ""
    return first + "\n".join(lines)


def _visible(character: str) -> str:
    known = unicodedata.category(character) not in ("Cc", "Cs") or character == "\n"
    return character if known else character.encode("unicode_escape").decode()


def _lines(text: str) -> list[str]:
    """Break a text wherever a line of LINE small letters is full."""
    out, room = [""], float(LINE)
    for character in text:
        square = unicodedata.east_asian_width(character) in "WF"
        broad = character.isupper() or character in "mw"
        width = 2.0 if square else 1.7 if broad else 1.0
        if width > room:
            out, room = [*out, ""], float(LINE)
        out[-1], room = out[-1] + character, room - width
    return out


def mark(number: int) -> dict[str, Any]:
    """Colour, line style and marker of a series, unique for the first 24 series."""
    return {
        "color": COLORS[number % len(COLORS)],
        "ls": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


Draw = Callable[[Sequence[Axes]], None]  # draws one panel on its axes, top to bottom


def grid(draws: Sequence[Draw], heights: Sequence[float]) -> Figure:
    """Draw panels in rows of three, each with one axes per height (in inches)."""
    with matplotlib.rc_context(LITERAL):
        return _grid(draws, heights)


def _grid(draws: Sequence[Draw], heights: Sequence[float]) -> Figure:
    columns = min(len(draws), COLUMNS)
    lines = -(-len(draws) // columns)
    size = (0.3 + WIDTH * columns, (0.9 + sum(heights)) * lines)
    figure = Figure(figsize=size, layout="constrained")
    boxes = figure.subfigures(lines, columns, squeeze=False).ravel()
    for box, draw in zip(boxes, draws, strict=False):
        axes = box.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for low in axes[1:]:
            low.sharex(axes[0])
            axes[0].tick_params(labelbottom=False)
        draw(axes)
    return figure


def plain(axes: Axes) -> None:
    """Put a light grid behind the data and remove the top and right frame lines."""
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """Render the figure as the bytes of a PNG file, at DPI."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with matplotlib.rc_context(LITERAL):  # of labels that are made as they are drawn
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def save(figure: Figure, path: epath.PathLike) -> None:
    """Write the figure as PNG, and create the folders of its path."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))
