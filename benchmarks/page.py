"""The page docs/benchmarks.md, written from the JSON files of measured/."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.rows import table

ROOT = Path(__file__).parents[1]
MEASURED = Path(__file__).parent / "measured"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "img" / "growth.png"
# Rivals that are a part of the same work, or its limit: below 1 is no defeat.
REFERENCES = ("lora", "one adapter", "one condition", "product", "peak")
NO_DEVICE = """## device

No GPU was measured: `benchmarks/measured` has no rows `device`.
"""
TEMPLATE = Path(__file__).parent / "page.md"


def text(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the page for the contents of JSON files."""
    sections = [section(run) for run in runs]
    rows = [row for run in runs for row in run["rows"]]
    if not any(row["name"].startswith("device/") for row in rows):
        sections.append(NO_DEVICE)
    return TEMPLATE.read_text().replace("SECTIONS\n", "\n".join(sections))


def section(run: Mapping[str, Any]) -> str:
    """Return the part of the page about one run of the benchmark."""
    groups = dict.fromkeys(row["name"].split("/")[0] for row in run["rows"])
    about = run["machine"]
    where = (
        about["device"] if about["device"] != "cpu" else f"{about['cores']} CPU cores"
    )
    title = f"## {', '.join(groups)} ({where})"
    parts = [title, heading(run), table(run["rows"]), losses(run)]
    if laws := plots.laws(run["details"]):
        parts += ["The seconds of a step follow these laws:", "\n".join(laws)]
        parts += [f"![seconds of a step as one quantity grows](img/{PLOT.name})"]
    return "\n\n".join(parts) + "\n"


def heading(run: Mapping[str, Any]) -> str:
    """Return command, date, machine and versions, in two sentences."""
    about = run["machine"]
    device = "" if about["device"] == "cpu" else f", {about['device']}"
    versions = ", ".join(f"{name} {x}" for name, x in run["versions"].items())
    return (
        f"`{run['command']}` on {run['date']}: {about['cpu']}, {about['cores']} CPU "
        f"cores, {about['memory_gib']} GiB{device}, {about['system']}. "
        f"Versions: {versions}."
    )


def losses(run: Mapping[str, Any]) -> str:
    """Return a sentence about the rows in which a rival is faster or smaller."""
    behind = [
        f"`{row['name']}` ({row['ratio']:.2f} of {row['rival']})"
        for row in run["rows"]
        if row["ratio"] < 1 and not _is_reference(row)
    ]
    if not behind:
        return "No row is behind its rival."
    return f"Behind the rival: {', '.join(behind)}."


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row["rival"] in REFERENCES or row["name"].startswith("growth/")


def measured() -> list[dict[str, Any]]:
    """Contents of the JSON files that the page shows."""
    return [json.loads(path.read_text()) for path in sorted(MEASURED.glob("*.json"))]


def write() -> None:
    """Write docs/benchmarks.md, and the plot of what grows."""
    runs = measured()
    PAGE.write_text(text(runs))
    for run in runs:
        if plots.laws(run["details"]):
            plots.draw(run["details"], PLOT)
