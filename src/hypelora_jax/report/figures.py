"""What all figures of a report share: marks, a grid of panels, PNG files.

Plain `Figure` objects, rendered by Agg: no display and no global state of pyplot.
Colour never stands alone: each series has its own line style and marker too, and the
colours differ in lightness, so that a black and white print can be read.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

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
COLUMNS = 3  # panels beside each other in a PNG file
WIDTH = 3.9  # inches of a panel
DPI = 160  # a panel is 672 dots wide, drawn on 340 to 450 of them


def mark(number: int) -> dict[str, Any]:
    """Colour, line style and marker of a series; 24 series are all different."""
    return {
        "color": COLORS[number % len(COLORS)],
        "ls": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


Draw = Callable[[Sequence[Axes]], None]  # one panel, on its axes from top to bottom


def grid(draws: Sequence[Draw], heights: Sequence[float]) -> Figure:
    """Panels in rows of three; each has one axes for each of the heights (inches)."""
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
    """Light grid behind the data, no frame above and to the right."""
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes, at DPI."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def save(figure: Figure, path: epath.PathLike) -> None:
    """Write the figure as PNG; folders are made."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))
