"""Numbered lines of a file or of stdin, with a mark wherever the input pauses."""

import codecs
import contextlib
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from absl import logging
from etils import epath

from hypelora_jax.errors import UserError

PATIENCE = 0.1  # seconds without input after which the rows read so far are answered
_BLOCK = 1 << 16
_MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_Blocks = Iterator[bytes | None]


class Line(NamedTuple):
    """One line as it was read, including its line end."""

    number: int  # from 1
    data: bytes
    read: int  # bytes of the input up to its end (if it is UTF-16: of its UTF-8 form)


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

    A line feed, a carriage return, or both end a line. UTF-16 is turned into UTF-8, and
    a log line says so. If nothing comes for PATIENCE seconds, one None is yielded, so
    that the caller can answer what it has before waiting for more.
    """
    file = sys.stdin.buffer if path == "-" else epath.Path(path).open("rb")
    closing = contextlib.nullcontext() if path == "-" else file
    with closing:
        yield from _numbered(_as_utf8(_blocks(file), path))


def _numbered(blocks: _Blocks) -> Lines:
    number, read = 0, 0
    for data in _ended(blocks):
        if data is None:
            yield None
            continue
        number, read = number + 1, read + len(data)
        text = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
        yield Line(number, text, read)


def _ended(blocks: _Blocks) -> Iterator[bytes | None]:
    """Yield lines with their ends, and None where the blocks have it.

    After a carriage return at the end of a block a line feed may follow. It is waited
    for if the lines so far end in line feeds. Otherwise the line is yielded at a pause,
    so that a pipe of lines that end in carriage returns is answered at once.
    """
    rest: list[bytes] = []  # a line may come in many blocks
    feeds = False  # whether the last line end had a line feed
    late = False  # whether a line feed at the start of the next block is to be dropped
    for block in blocks:
        if block is None:
            if rest and rest[-1].endswith(b"\r") and not feeds:
                yield b"".join(rest)
                rest, late = [], True
            yield None
            continue
        if late:
            block, late = block.removeprefix(b"\n"), False
        if rest and rest[-1].endswith(b"\r"):
            rest[-1], block = rest[-1][:-1], b"\r" + block
        *whole, last = block.splitlines(keepends=True) or [b""]
        for part in whole:
            yield b"".join([*rest, part])
            rest, feeds = [], part.endswith(b"\n")
        if last.endswith(b"\n"):
            yield b"".join([*rest, last])
            rest, feeds = [], True
        elif last:
            rest.append(last)
    if data := b"".join(rest):
        yield data


def _as_utf8(blocks: _Blocks, path: str) -> _Blocks:
    """Turn blocks of UTF-16 or UTF-32 into UTF-8; leave all others as they are."""
    decoder, begun = None, False
    for block in blocks:
        if block and not begun and (encoding := _encoding(block)):
            name = "the input" if path == "-" else path
            logging.info("%s is %s; it is read as that", name, encoding.upper())
            # Half a surrogate pair becomes bytes that are not UTF-8, so that the line
            # with it is a bad line.
            decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        begun = begun or bool(block)
        if block is not None and decoder is not None:
            block = _decoded(decoder, block, path)
        yield block
    if decoder is not None and decoder.getstate()[0]:
        yield b"\xff"  # half a code unit: the last line is not text


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, path: str) -> bytes:
    """Return a block as UTF-8; UTF-32 has numbers that are not characters."""
    try:
        return decoder.decode(block).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as e:
        name = "the input" if path == "-" else path
        raise UserError(
            f"{name} has bytes that are not text in {e.encoding.upper()}; expected "
            "text throughout. Save it again, as UTF-8"
        ) from None


def _encoding(start: bytes) -> str:
    """Return the encoding that the first bytes tell, or "" for UTF-8 and others."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    first = start[:2]  # a table begins with an ASCII letter, a quote or a brace
    if len(first) == 2 and first.count(0) == 1:
        return "utf-16-be" if first[0] == 0 else "utf-16-le"
    return ""


def _blocks(file: BinaryIO) -> _Blocks:
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
