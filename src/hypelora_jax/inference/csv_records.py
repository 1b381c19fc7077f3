"""Reads CSV and TSV records (RFC 4180); after a bad line it goes on at the next one."""

import csv
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hypelora_jax.inference.lines import Bad, Line, Lines


class Record(NamedTuple):
    """The cells of one record, which may take several lines."""

    line: int  # the first of its lines
    cells: list[str]
    read: int  # bytes of the input up to its end


class _End:
    """Marks the end of the input, because None already means a pause."""


_Next = Callable[[], Line | None | type[_End]]


def records(lines: Lines, delimiter: str) -> Iterator[Record | Bad | None]:
    """Yield the records of the lines, and None if the input pauses.

    A quoted field may contain delimiters, quotes and line ends. The first record, the
    header, sets how many fields every record has. Only the first line of a bad record
    is lost, because reading goes on at the line after it.
    """
    again: deque[Line] = deque()  # lines that are read a second time
    width = 0

    def following() -> Line | None | type[_End]:
        return again.popleft() if again else next(lines, _End)

    while (first := following()) is not _End:
        if not isinstance(first, Line):
            yield None
            continue
        taken = [first]
        cells, what = _cells(taken, following, delimiter)
        width = width or len(cells)
        if cells and len(cells) != width:
            what = f"it has {len(cells)} fields; expected {width} as in the header"
        if what:
            again.extendleft(reversed(taken[1:]))
            yield Bad(first.number, what, first.read)
        elif cells:  # not an empty line
            yield Record(first.number, cells, taken[-1].read)


def _cells(
    taken: list[Line], following: _Next, delimiter: str
) -> tuple[list[str], str]:
    """Read (cells, fault) of the record that starts at `taken`; "" is no fault."""
    reader = csv.reader(_texts(taken, following), delimiter=delimiter, strict=True)
    try:
        return next(reader), ""
    except csv.Error as e:
        return (
            [],
            f"{e}; expected RFC 4180 quotes, with each quote inside a field doubled",
        )


def _texts(taken: list[Line], following: _Next) -> Iterator[str]:
    """Yield the text of `taken` and of the lines after it, which are added to it."""
    yield _decoded(taken[0])
    while (line := following()) is not _End:
        if isinstance(line, Line):  # a pause inside a record has no meaning
            taken.append(line)
            yield _decoded(line)


def _decoded(line: Line) -> str:
    # Bytes that are not UTF-8 become surrogates, which `texts.broken` finds later.
    return line.data.decode(errors="surrogateescape")
