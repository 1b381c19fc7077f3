"""The pictures of a report: for the page, and as files beside it."""

from collections.abc import Callable, Mapping, Sequence

from etils import epath
from matplotlib.figure import Figure

from hypelora_jax.report import curves, figures, plots, selective
from hypelora_jax.report.runs import Method

FIGURES = {
    "reliability": "Reliability",
    "risk_coverage": "Risk and coverage",
    "curves": "Training",
}
Pictures = list[tuple[str, bytes]]  # alternative text, PNG


def draw(methods: Sequence[Method], split: str) -> dict[str, Pictures]:
    """Pictures by the names of FIGURES: one a method, but one in all of risk."""
    panels = _panels(methods, split)
    limits = plots.limits_of(panels) if panels else None
    diagrams = []
    for panel in panels:
        errors = ", ".join(f"{s.name} ECE {s.ece:.4f}" for s in panel.stages)
        figure = plots.reliability([panel], limits=limits)
        diagrams.append((f"Reliability diagram of {panel.title}: {errors}", figure))
    risk = selective.risk_coverage(methods, split)
    names = ", ".join(method.name for method in methods)
    trained = [m for m in methods if any(run.curve for run in m.runs)]
    tops = curves.highest(trained)
    drawn = {
        "reliability": diagrams,
        "risk_coverage": [(f"Risk over coverage of {names}", risk)] if risk else [],
        "curves": [
            (f"Loss and ECE of {m.name} over epochs", curves.curves([m], tops))
            for m in trained
        ],
    }
    return {
        name: [(text, figures.png(figure)) for text, figure in held]
        for name, held in drawn.items()
    }


def _panels(methods: Sequence[Method], split: str) -> list[plots.Panel]:
    held = [plots.panel_of(method, split) for method in methods]
    return [panel for panel in held if panel is not None]


def write(
    pictures: Mapping[str, Pictures],
    methods: Sequence[Method],
    split: str,
    output: epath.Path,
) -> None:
    """Write NAME_KIND.png beside the page NAME.html; several panels in one file."""
    together: dict[str, Callable[[], Figure | None]] = {
        "reliability": lambda: plots.reliability(_panels(methods, split)),
        "curves": lambda: curves.curves(methods),
    }
    for name, held in pictures.items():
        if held:
            data = held[0][1] if len(held) == 1 else figures.png(together[name]())
            output.with_name(f"{output.stem}_{name}.png").write_bytes(data)
