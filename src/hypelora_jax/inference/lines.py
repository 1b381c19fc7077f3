"""Numbered lines of a file or of stdin, with a mark wherever the input pauses."""

import contextlib
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

PATIENCE = 0.1  # seconds without input after which the rows read so far are answered
_BLOCK = 1 << 16


class Line(NamedTuple):
    """One line as it was read, including its line end."""

    number: int  # from 1
    data: bytes
    read: int  # bytes of the input up to its end


class Bad(NamedTuple):
    """A line that is not an example, and why."""

    line: int
    what: str
    read: int


Lines = Iterator[Line | None]  # None means that nothing more has come for a while


def size_of(path: str) -> int | None:
    """Return the bytes of the input, or None for a pipe, a device or a remote file."""
    try:
        about = os.fstat(sys.stdin.fileno()) if path == "-" else os.stat(path)
    except (OSError, ValueError, AttributeError):  # stdin may not be a file at all
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def read(path: str) -> Lines:
    """Yield the lines of a file, or of stdin for "-", without a byte order mark.

    Only a line feed ends a line. If nothing comes for PATIENCE seconds, one None is
    yielded, so that the caller can answer what it has before waiting for more.
    """
    file = sys.stdin.buffer if path == "-" else epath.Path(path).open("rb")
    closing = contextlib.nullcontext() if path == "-" else file
    with closing:
        yield from _numbered(_blocks(file))


def _numbered(blocks: Iterator[bytes | None]) -> Lines:
    number, read = 0, 0
    rest: list[bytes] = []  # a line may come in many blocks
    for block in blocks:
        if block is None:
            yield None
            continue
        *whole, last = block.split(b"\n")
        for part in whole:
            data = b"".join([*rest, part, b"\n"])
            number, read, rest = number + 1, read + len(data), []
            yield Line(number, _unmarked(number, data), read)
        rest += [last] if last else []
    if data := b"".join(rest):
        yield Line(number + 1, _unmarked(number + 1, data), read + len(data))


def _unmarked(number: int, data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data


def _blocks(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield a file's contents block by block, and None whenever a pipe is empty."""
    descriptor = _slow_descriptor(file)
    if descriptor is None:
        while block := file.read(_BLOCK):
            yield block
        return
    while True:
        if not select.select([descriptor], [], [], PATIENCE)[0]:
            yield None
        if not (block := os.read(descriptor, _BLOCK)):
            return
        yield block


def _slow_descriptor(file: BinaryIO) -> int | None:
    """Return the descriptor of a pipe or a terminal, or None for any other file."""
    if sys.platform == "win32":  # select works on sockets only
        return None
    try:
        number = file.fileno()
    except (OSError, ValueError, AttributeError):  # not a file of this system
        return None
    return None if stat.S_ISREG(os.fstat(number).st_mode) else number
