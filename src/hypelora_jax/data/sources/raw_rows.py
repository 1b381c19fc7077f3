"""Reads the rows of one of the user's files: texts and labels as they are there."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import formats
from hypelora_jax.data import labels as labels_lib
from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.formats import ReadSheet
from hypelora_jax.data.formats.cells import listed, shown, text_fault
from hypelora_jax.data.formats.sheet import Bad, Row, Sheet, column
from hypelora_jax.data.labels import Label
from hypelora_jax.data.sources.bad_rows import BadRows
from hypelora_jax.errors import UserError

# Names that are tried, in this order, if the config does not name the column.
COLUMNS = {
    "text": ("text", "sentence", "sentence1", "premise", "question", "question1"),
    "text_b": ("text_b", "sentence2", "hypothesis", "question2"),
    "label": ("label",),
}


class Raw(NamedTuple):
    """Rows of a file before labels have ids; `where` is "file:line" of each.

    `text_b` and `condition`, the vectors, are None if the file has no such column.
    """

    where: list[str]
    text: list[str]
    text_b: list[str] | None
    label: list[Label]
    condition: list[np.ndarray] | None = None


def read_raw(
    path: str,
    config: DataConfig | None,
    split: str,
    bad: BadRows,
    vectors: Vectors | None = None,
    read: ReadSheet = formats.read,
) -> Raw:
    """Read one file: unchanged texts and labels, and vectors; bad rows go to `bad`.

    Without a config, columns are found by name. `read` reads the sheet.

    Raises:
      UserError: the suffix is unknown, the file is broken, or a column is missing.
    """
    how = formats.format_of(path)
    if how is None:
        raise UserError(
            f"{path} has suffix {epath.Path(path).suffix!r}; expected one of "
            f"{formats.suffixes()}"
        )
    sheet = read(path, how)
    rows: list[Row] = []
    if sheet.columns is None:  # JSON lines name their columns line by line
        for item in sheet.rows((), False):
            if isinstance(item, Bad):
                bad.add(f"{path}:{item.line}", item.what)
            elif item is not None:
                rows.append(item)
        names = dict.fromkeys(name for row in rows for name in row.cells)
        sheet = sheet._replace(columns=tuple(names))
    if not sheet.columns:
        raise UserError(f"{path} is empty; expected a data file with examples")
    chosen = _chosen(sheet, config, split, vectors is not None)
    return _raw(path, rows or sheet.rows(chosen.used, False), chosen, bad, vectors)


class _Chosen(NamedTuple):
    """The columns that are read; None if the file has no such column."""

    text: str
    text_b: str | None
    label: str | None
    condition: str | None

    @property
    def used(self) -> list[str]:
        return [name for name in self if name is not None]


def _chosen(
    sheet: Sheet, config: DataConfig | None, split: str, conditioned: bool
) -> _Chosen:
    find_b = _required if config and config.text_b else _column
    find_label = _column if split == "test" else _required
    return _Chosen(
        _required(sheet, config, "text"),
        find_b(sheet, config, "text_b"),
        find_label(sheet, config, "label"),
        _required(sheet, config, "condition") if conditioned else None,
    )


def _raw(
    path: str,
    items: Iterable[Row | Bad | None],
    chosen: _Chosen,
    bad: BadRows,
    vectors: Vectors | None,
) -> Raw:
    texts = [name for name in (chosen.text, chosen.text_b) if name]
    out = Raw([], [], [] if chosen.text_b else None, [], [] if vectors else None)
    for item in items:
        if item is None:
            continue
        where = f"{path}:{item.line}"
        if isinstance(item, Bad):
            bad.add(where, item.what)
            continue
        cells = item.cells
        value = cells.get(chosen.label) if chosen.label else None
        what = _text_fault(cells, texts) or labels_lib.fault(value)
        condition = cells.get(chosen.condition or "")
        if vectors and not what:
            what = vectors.fault(condition)
        if what:
            bad.add(where, what)
            continue
        if vectors and out.condition is not None:
            out.condition.append(vectors.vector(condition))
        out.where.append(where)
        out.text.append(cells[chosen.text])
        out.label.append(labels_lib.scalar(value))
        if chosen.text_b and out.text_b is not None:
            out.text_b.append(cells[chosen.text_b])
    return out


def _column(sheet: Sheet, config: DataConfig | None, what: str) -> str | None:
    """Return the column for "text", "text_b" or "label", or None if it is missing."""
    asked = getattr(config, what) if config else ""
    return column(sheet, [asked] if asked else COLUMNS[what])


def _required(sheet: Sheet, config: DataConfig | None, what: str) -> str:
    """Return the column like `_column`, but raise a UserError if it is missing."""
    found = _column(sheet, config, what)
    if found is not None:
        return found
    asked = getattr(config, what) if config else ""
    wanted = repr(asked) if asked else " or ".join(COLUMNS[what])
    way_out = f"Name the column with config.data.{what}=COLUMN" if config else "Add it"
    raise UserError(
        f"{sheet.name} has no column {wanted}; it has {listed(sheet.columns or ())}. "
        f"{way_out}"
    )


def _text_fault(cells: dict[str, Any], columns: list[str]) -> str:
    for name in columns:
        if what := text_fault(cells.get(name)):
            return f"{name!r} is {shown(cells.get(name))}; {what}"
    return ""
