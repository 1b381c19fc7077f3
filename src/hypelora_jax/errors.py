"""Errors: their exit codes and one-line messages, and the check of names in tables."""

import errno
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class UserError(ValueError):
    """A user error; one line says what was given, what was expected and what to do.

    Line ends in the message become spaces, because names from files may have some.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class Preempted(Exception):
    """The machine asked the run to stop; its state is saved, so it can be resumed."""


def choose(table: Mapping[str, Entry], name: str, field: str) -> Entry:
    """Return the table entry that the user named in a config field or a flag.

    Args:
      field: the config field or flag with the name, such as "loss.name" or "--sets".

    Raises:
      UserError: the table has no such entry; the message lists its keys.
    """
    if name not in table:
        where = field if field.startswith("--") else f"config.{field}"
        raise UserError(f"{where} is {name!r}; expected one of {', '.join(table)}")
    return table[name]


# Errors caused by disks, folders and file names. They are not bugs of this package, so
# the user gets one line and no traceback.
USERS_ERRNOS = {
    getattr(errno, name)
    for name in "EACCES EDQUOT EEXIST EISDIR ELOOP ENAMETOOLONG ENOENT ENOSPC "
    "ENOTDIR ENXIO EPERM EROFS".split()
    if hasattr(errno, name)
}


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and one line that says what went wrong and how to fix it.

    Codes: 2 a user error, 3 an internal error, 75 preempted and saved, 130 interrupted
    and saved.
    """
    code, line = _explain(error)
    return code, " ".join(line.split())


def _explain(error: BaseException) -> tuple[int, str]:
    detail = f": {error}" if error.args else ""
    if isinstance(error, UserError):
        return 2, f"error{detail}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted{detail}"
    if isinstance(error, Preempted):
        return 75, f"preempted{detail}"
    if isinstance(error, OSError) and error.errno in USERS_ERRNOS:
        return 2, f"error: {_os_error(error)}"
    if "No space left on device" in str(error):  # as tensorstore reports it
        return 2, f"error: No space left on device; {_WAY_OUT[errno.ENOSPC]}"
    if isinstance(error, ImportError) and "gcsfs" in str(error):
        return 2, "error: gs://... needs gcsfs, which is not here; pip install gcsfs"
    if "Unable to initialize backend" in str(error):
        return 2, f"error{detail}; `hypelora doctor` says more"
    fault = f"{type(error).__name__}{detail}"
    return 3, f"internal error: {fault}; --debug shows the traceback"


_WAY_OUT = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.ENOENT: "expected a file or folder that exists",
    errno.ENOTDIR: "a part of that path is a file; expected folders",
    errno.EEXIST: "choose another name",
    errno.EISDIR: "expected a file",
}


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    other = "expected a place that this user may read and write"
    way_out = _WAY_OUT.get(error.errno or 0, other)
    return f"{where}{error.strerror}; {way_out}"
