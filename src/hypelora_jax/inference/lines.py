"""Lines of a file or of stdin, numbered, with a word where the input pauses."""

import contextlib
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

PATIENCE = 0.1  # seconds without input, after which what is there is answered
_BLOCK = 1 << 16


class Line(NamedTuple):
    """One line as it was read, its end of line with it."""

    number: int  # from 1
    data: bytes
    read: int  # bytes of the input up to its end


Lines = Iterator[Line | None]  # None: nothing more has come for a while


def size_of(path: str) -> int | None:
    """Bytes of the input, None where nobody knows: a pipe, a device, another store."""
    try:
        about = os.fstat(sys.stdin.fileno()) if path == "-" else os.stat(path)
    except (OSError, ValueError, AttributeError):  # stdin may be no file at all
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def read(path: str) -> Lines:
    """Lines of a file, or of stdin for "-"; without a byte order mark.

    Lines end at a line feed alone. Where nothing comes for PATIENCE a None says so,
    once: whoever reads along a slow pipe need not wait for more of it.
    """
    own = sys.stdin.buffer if path == "-" else epath.Path(path).open("rb")
    closing = contextlib.nullcontext() if path == "-" else own
    with closing:
        yield from _numbered(_blocks(own))


def _numbered(blocks: Iterator[bytes | None]) -> Lines:
    number, read, rest = 0, 0, []  # a line may come in many blocks
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
    """What a file holds, block by block; None where a pipe has nothing more to read."""
    try:
        number = file.fileno()
    except (OSError, ValueError, AttributeError):  # no file of this system
        number = None
    slow = number is not None and not stat.S_ISREG(os.fstat(number).st_mode)
    if not slow or sys.platform == "win32":  # select there knows sockets alone
        while block := file.read(_BLOCK):
            yield block
        return
    while True:
        if not select.select([number], [], [], PATIENCE)[0]:
            yield None
        if not (block := os.read(number, _BLOCK)):
            return
        yield block
