"""A sheet: what every format of tables is read as, and how its columns are found."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from hypelora_jax.data.formats.cells import listed
from hypelora_jax.errors import UserError


class Row(NamedTuple):
    """One row as it was read; nothing is known yet about its cells."""

    line: int  # where it begins, from 1; in Parquet the number of the row
    cells: dict[str, Any]  # by the names in `Sheet.columns`
    read: int  # bytes of the input up to its end


class Bad(NamedTuple):
    """A line that is not a row, and why."""

    line: int
    what: str
    read: int


Items = Iterator[Row | Bad | None]  # None means that the input pauses


class Sheet(NamedTuple):
    """The columns of a file, and its rows in order.

    `rows(columns, others)` reads them once. `columns` are the names of the cells that
    must be readable. `others` says whether the rest is wanted too, so that a format
    that stores columns can leave them out.
    """

    name: str  # the file, for messages
    columns: tuple[str, ...] | None  # unique; () if it is empty; None for JSON lines
    rows: Callable[[Sequence[str], bool], Items]
    repeated: frozenset[str] = frozenset()  # names that several columns have


def columns_of(name: str, header: Sequence[str]) -> tuple[tuple[str, ...], frozenset]:
    """Return (unique names of the columns, names that occurred more than once).

    Columns without a name, and all but the first of one name, are named by their place.
    """
    counts, names = Counter(header), list[str]()
    for place, column in enumerate(header, 1):
        new = column
        if not column or column in names:
            new = f"{column or 'column'}_{place}"
        while new in names or (new != column and new in counts):
            new += "_"
        names.append(new)
    repeated = frozenset(n for n, count in counts.items() if n and count > 1)
    if repeated:
        changed = [n for n, old in zip(names, header, strict=True) if old and n != old]
        logging.info(
            "%s has several columns %s; the later ones are read as %s",
            name,
            listed(sorted(repeated)),
            listed(changed),
        )
    return tuple(names), repeated


def column(sheet: Sheet, asked: Sequence[str]) -> str | None:
    """Return the first of the names that the sheet has a column of, or None.

    Raises:
      UserError: several columns have that name.
    """
    found = next((name for name in asked if name in (sheet.columns or ())), None)
    if found in sheet.repeated:
        raise UserError(
            f"{sheet.name} has two columns {found!r}; expected one. Rename the other"
        )
    return found
