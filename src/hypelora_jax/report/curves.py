"""Training curves: loss, NLL and ECE over epochs, with the chosen step marked."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hypelora_jax.report import figures
from hypelora_jax.report.runs import Method, RunView

MARGIN = 1.06  # of an axis above the highest point


def curves(methods: Sequence[Method], limits: tuple | None = None) -> Figure | None:
    """Train loss and validation NLL, and ECE below, over epochs; a panel a method.

    The chosen epoch is marked by a vertical line, with several seeds by a star on each
    seed's curve. Where no epoch has ended, the axis counts steps. None without data.

    Args:
      methods: those without a curve are left out.
      limits: (highest loss, highest ECE) of the axes, from `highest`; None: of these.
    """
    methods = [m for m in methods if any(run.curve for run in m.runs)]
    if not methods:
        return None
    limits = highest(methods) if limits is None else limits
    nats = "nats" if any(_has(m, "nll") for m in methods) else "loss"

    def drawing(method: Method) -> figures.Draw:
        return lambda axes: _panel(axes, method, limits, nats)

    return figures.grid([drawing(method) for method in methods], (2.4, 1.6))


def highest(methods: Sequence[Method]) -> tuple[float, float]:
    """Highest loss and ECE that the panels show: panels of one report share axes."""
    rows = [row for m in methods for run in m.runs for row in run.curve]
    loss = [row.get("loss") for row in rows if row.get("split") == "train"]
    held = [row for row in rows if row.get("split") == "validation"]
    loss += [row.get("nll") for row in held]
    ece = [row.get("ece") for row in held]
    tops = (max((x for x in xs if x is not None), default=1.0) for xs in (loss, ece))
    return tuple(top or 1.0 for top in tops)


def _has(method: Method, key: str) -> bool:
    return any(key in row for run in method.runs for row in run.curve)


def _points(rows: list[dict[str, Any]], key: str, unit: float) -> tuple[list, list]:
    held = [row for row in rows if row.get(key) is not None]
    return [row["step"] / unit for row in held], [row[key] for row in held]


def _panel(axes: Sequence[Axes], method: Method, limits: tuple, nats: str) -> None:
    for number, run in enumerate(method.runs):
        _curve(axes, run, number, len(method.runs) > 1)
    several = f", {len(method.runs)} seeds" if len(method.runs) > 1 else ""
    top, bottom = axes
    top.set_title(f"{method.name}{several}", fontsize=10)
    top.set(ylabel=nats, ylim=(0, MARGIN * limits[0]))
    bottom.set(ylabel="ECE", ylim=(0, MARGIN * limits[1]))
    top.legend(fontsize=8, frameon=False, loc="best")
    bottom.set_xlabel("step" if _unit(method.runs[0]) == 1 else "epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for one in axes:
        figures.plain(one)


def _validation(run: RunView) -> list[dict[str, Any]]:
    return [row for row in run.curve if row.get("split") == "validation"]


def _unit(run: RunView) -> float:
    """Steps of an epoch; 1 where none has ended."""
    return next((row["step"] for row in _validation(run) if row["step"] > 0), 1)


def _curve(axes: Sequence[Axes], run: RunView, number: int, several: bool) -> None:
    """One seed's lines; what stands in the legend is said once."""
    train = [row for row in run.curve if row.get("split") == "train"]
    epochs, unit = _validation(run), _unit(run)
    loss, first = _points(train, "loss", unit), number == 0
    dot = "." if len(loss[0]) < 30 else None  # few points make no line
    thin = 0.6 if several else 1
    said = {"label": "train loss"} if first else {}
    axes[0].plot(*loss, color=figures.PALE, lw=thin, marker=dot, zorder=1, **said)
    style = {"color": figures.AFTER, "marker": "o", "ms": 4, "lw": 1.6 * thin}
    for one, key in zip(axes, ("nll", "ece"), strict=True):
        x, y = _points(epochs, key, unit)
        said = {"label": "validation NLL"} if first and key == "nll" else {}
        one.plot(x, y, **style, **said)
        if run.best_step is None:
            continue
        at = run.best_step / unit
        said = {"label": "chosen"} if first and key == "nll" else {}
        if not several:
            dashes = {"color": figures.INK, "lw": 1.1, "ls": figures.DASHED}
            one.axvline(at, zorder=1, **dashes, **said)
        elif at in x:
            star = {"marker": "*", "ms": 11, "ls": "", "mec": figures.INK}
            one.plot(at, y[x.index(at)], color="white", zorder=5, **star, **said)
