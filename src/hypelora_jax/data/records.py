"""Reading text files strictly: UTF-8, and what happens to a row that is bad."""

import reprlib
from collections.abc import Iterable
from typing import Any

from absl import logging
from etils import epath

from hypelora_jax.errors import UserError


def decode(path: epath.Path) -> str:
    """Text of a UTF-8 file without its byte order mark.

    Raises:
      UserError: the file is missing, empty or not UTF-8 (with file and line).
    """
    data = read(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        byte = e.object[e.start]
        raise UserError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; wanted UTF-8 text: "
            "convert the file (iconv -t utf-8)"
        ) from None


def read(path: epath.Path) -> bytes:
    """Bytes of a data file.

    Raises:
      UserError: the file is missing, a folder, unreadable or empty.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; wanted a data file: check the path")
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e}); wanted a data file") from None
    if not data.strip():
        raise UserError(f"{path} is empty; wanted a data file with examples")
    return data


def listed(names: Iterable[str]) -> str:
    """The first 12 names in one line, for messages."""
    names = [" ".join(name.split()) or "(empty)" for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def shown(value: Any) -> str:
    """A value as a message shows it: quoted, cut short, in one line."""
    return " ".join(reprlib.repr(value).split())


class BadRows:
    """Refuses bad rows, or counts them where `data.on_bad_row` is "skip"."""

    def __init__(self, on_bad_row: str):
        self._skip = on_bad_row == "skip"
        self._seen: list[str] = []

    def add(self, where: str, what: str) -> None:
        """One bad row at `where` ("file:line").

        Raises:
          UserError: bad rows are not skipped.
        """
        message = f"{where}: {what}"
        if not self._skip:
            raise UserError(f"{message}: repair it, or set data.on_bad_row=skip")
        self._seen.append(message)

    def warn(self) -> None:
        """One warning line for all the rows that were skipped, if any."""
        if self._seen:
            logging.warning(
                "skipped %d bad rows, the first: %s", len(self._seen), self._seen[0]
            )
