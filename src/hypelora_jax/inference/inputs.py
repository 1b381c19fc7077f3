"""Examples of a stream: rows with texts; bad lines are reported, not lost."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.formats import sheet as sheet_lib
from hypelora_jax.data.formats.cells import listed, shown, text_fault
from hypelora_jax.data.formats.sheet import Bad, Row, Sheet
from hypelora_jax.data.sources.raw_rows import COLUMNS
from hypelora_jax.errors import UserError
from hypelora_jax.inference.asked_tasks import WAYS, AskedTask, TaskReader
from hypelora_jax.run.prediction_rows import TRUE_LABEL


class Names(NamedTuple):
    """Names of the columns: for each text, the first one found counts.

    `label` is the column of true labels, if it has another name than "label".
    `condition` names the column of the conditions, which `vectors` reads; they are ""
    and None for a run without conditions. `tasks` reads the task of each row, for a run
    that makes an adapter for each task.
    """

    text: tuple[str, ...]
    text_b: tuple[str, ...] = ()  # () if an example has one text
    label: str = ""
    condition: str = ""
    vectors: Vectors | None = None
    tasks: TaskReader | None = None


class Example(NamedTuple):
    """One example: all its cells, its texts, and its condition or task, if any."""

    line: int  # where it begins
    cells: dict[str, Any]
    texts: tuple[str, ...]
    read: int  # bytes of the input up to its end
    condition: np.ndarray | None = None
    asked: AskedTask | None = None


Examples = Iterator[Example | Bad | None]  # None means that the input pauses


def names(
    pair: bool, text: str, text_b: str, config: tuple[str, str], label: str = ""
) -> Names:
    """Return the column names that may contain the texts.

    A name that the user gives is the only candidate. Otherwise the column of training
    comes first, and the usual names follow.

    Raises:
      UserError: a second text is named, but the run reads only one.
    """
    if text_b and not pair:
        raise UserError(
            f"--text_b={text_b} names a second text, but this run was trained on one; "
            "leave the flag out"
        )
    first = _candidates(text, config[0], COLUMNS["text"])
    second = _candidates(text_b, config[1], COLUMNS["text_b"]) if pair else ()
    return Names(first, second, "" if label == "label" else label)


def _candidates(asked: str, trained: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    if asked:
        return (asked,)
    return tuple(dict.fromkeys(name for name in (trained, *usual) if name))


def read(sheet: Sheet, wanted: Names) -> tuple[list[str] | None, Examples]:
    """Read (columns, examples) of a sheet; columns are None for JSON lines.

    Raises:
      UserError: a column is missing, or there are two of its name.
    """
    if sheet.columns is None:
        return None, _examples(sheet, [], wanted)
    if not sheet.columns:  # an empty input
        return None, iter(())
    columns = list(sheet.columns)
    if wanted.label in columns and TRUE_LABEL not in columns:
        columns.append(TRUE_LABEL)
    return columns, _examples(sheet, _columns(sheet, wanted), wanted)


def _columns(sheet: Sheet, wanted: Names) -> list[str]:
    """Return the columns of the texts, in a file with a header."""
    out = []
    for flag, asked in zip(("text", "text_b"), wanted[:2], strict=True):
        found = sheet_lib.column(sheet, asked)
        if asked and found is None:
            raise UserError(
                f"{sheet.name} has no column {' or '.join(asked)}; it has "
                f"{listed(sheet.columns or ())}. Name the column with --{flag}=COLUMN"
            )
        out += [found] if found else []
    if wanted.tasks is not None:
        if not {*WAYS} & {*(sheet.columns or ())}:
            raise UserError(
                f"{sheet.name} has none of the columns {', '.join(WAYS)}, which say "
                f"the task of a text; it has {listed(sheet.columns or ())}. Add one"
            )
        return out
    condition = wanted.condition
    if condition and sheet_lib.column(sheet, (condition,)) is None:
        raise UserError(
            f"{sheet.name} has no column {condition}, the condition of each text; it "
            f"has {listed(sheet.columns or ())}. Add it"
        )
    return out


def _examples(sheet: Sheet, columns: list[str], wanted: Names) -> Examples:
    """Yield the rows as examples; JSON lines name their columns one by one."""
    needed = columns + ([wanted.condition] if wanted.condition else [])
    if wanted.tasks is not None:
        own = (*WAYS, "labels")
        needed = columns + [name for name in own if name in (sheet.columns or ())]
    for item in sheet.rows(needed, True):
        if isinstance(item, Row):
            yield _example(item, columns or _keys(item.cells, wanted), wanted)
        else:
            yield item


def _keys(cells: dict[str, Any], wanted: Names) -> list[str]:
    return [
        next((name for name in asked if name in cells), asked[0])
        for asked in wanted[:2]
        if asked
    ]


def _example(row: Row, columns: list[str], wanted: Names) -> Example | Bad:
    line, cells, read = row
    for name in columns:
        if what := text_fault(cells.get(name)):
            return Bad(line, f"{name!r} is {shown(cells.get(name))}; {what}", read)
    texts = tuple(cells[name] for name in columns)
    if wanted.label and wanted.label in cells and TRUE_LABEL not in cells:
        cells = cells | {TRUE_LABEL: cells[wanted.label]}
    if wanted.tasks is not None:
        own = {name: cells.get(name) for name in WAYS}
        if wanted.tasks.names_labels:  # otherwise it is a column like any other
            own["labels"] = cells.get("labels")
        if what := wanted.tasks.fault(own):
            return Bad(line, what, read)
        return Example(line, cells, texts, read, asked=wanted.tasks.asked(own))
    if wanted.vectors is None:
        return Example(line, cells, texts, read)
    cell = cells.get(wanted.condition)
    if what := wanted.vectors.fault(cell):
        return Bad(line, f"{what} (column {wanted.condition!r})", read)
    return Example(line, cells, texts, read, wanted.vectors.vector(cell))
