"""Writes results of experiments into docs/conditions.md.

The numbers are kept in experiments/measured, and the text around them, from the
relabelling benchmark to the end of the page, is experiments/results.md.in. With
`--page` an experiment stores its numbers and writes this part anew. This command writes
it from the stored numbers:

    python experiments/results_page.py
"""

import datetime
import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from hypelora_jax import files
from hypelora_jax.errors import UserError

HERE = Path(__file__).parent
MEASURED, TEMPLATE = HERE / "measured", HERE / "results.md.in"
PAGE = HERE.parent / "docs" / "conditions.md"
FIRST = "## The relabelling benchmark\n"  # what follows is written


def made(**about: Any) -> dict[str, Any]:
    """Return what the reader has to know of a measurement: date, machine, and more."""
    return {
        "date": str(datetime.date.today()),
        "cores": os.cpu_count(),
        "jax": importlib.metadata.version("jax"),
        **about,
    }


def begun(folder: epath.Path, **about: Any) -> dict[str, Any]:
    """Return what `made` said when an experiment began in a folder.

    Raises:
      UserError: it began with other flags, so what is there does not fit these.
    """
    file = folder / "made.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(file, made(**about))
    kept = files.read_json(file)
    for name, value in about.items():
        if kept.get(name) != value:
            raise UserError(
                f"{folder} was begun with {name} {kept.get(name)!r}, and now it is "
                f"{value!r}; expected the same flags, or another --workdir"
            )
    return kept


def write(name: str, found: Mapping[str, Any]) -> None:
    """Store the numbers of an experiment, and write the section of the page anew."""
    MEASURED.mkdir(exist_ok=True)
    files.write_json(MEASURED / f"{name}.json", found)
    files.write_whole(PAGE, page(PAGE.read_text("utf-8")))


def page(text: str) -> str:
    """Return the text of the page with the section that the stored numbers give."""
    numbers = {file.stem: files.read_json(file) for file in MEASURED.glob("*.json")}
    before, _ = text.split(FIRST)
    return f"{before}{FIRST}{filled(TEMPLATE.read_text('utf-8'), numbers)}"


def filled(template: str, numbers: Mapping[str, Any]) -> str:
    """Replace `{a.b.c}` by what the numbers have there, as `said` writes it."""

    def found(match: re.Match) -> str:
        value: Any = numbers
        for name in match[1].split("."):
            value = value[name]
        return said(value)

    return re.sub(r"\{([\w.+-]+)\}", found, template)


def said(value: Any) -> str:
    """Write a number with 3 digits; one with `value`, `low`, `high` with its interval.

    A fourth digit is given if three would make a number below 1 look like 1.
    A list of rows becomes the rows of a table, whose cells are written the same way.
    """
    if isinstance(value, Mapping):
        low, high = said(value["low"]), said(value["high"])
        return f"{said(value['value'])} [{low}, {high}]"
    if isinstance(value, float):
        if abs(value) >= 1:
            return f"{value:.2f}"
        digits = 3 if abs(value) < 0.9995 else 4
        return f"{value:.{digits}f}".replace("0.", ".", 1)
    if isinstance(value, Sequence) and not isinstance(value, str):
        rows = [f"| {' | '.join(said(x) for x in row)} |" for row in value]
        return "\n".join(rows)
    return str(value)


if __name__ == "__main__":
    files.write_whole(PAGE, page(PAGE.read_text("utf-8")))
