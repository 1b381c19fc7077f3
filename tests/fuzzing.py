"""Changes of good inputs, and the verdict: a right answer or one line, in time.

A change has edits of values (a field, a cell, an array of a file) and then steps on
bytes, so that some inputs stay well-formed and others do not.
"""

import contextlib
import copy
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st

from hypelora_jax.errors import UserError

# Hypothesis keeps its tables of characters there, and not in the checkout.
hypothesis.configuration.set_hypothesis_home_dir(
    os.path.join(tempfile.gettempdir(), "hypelora_test_hypothesis")
)
SECONDS = 10  # that an example may take
SPAN = 2**16  # places in an input are shares of it

DEEP = b"[" * 20_000
TEXTS = (
    b"",
    b"\x00",
    b"\n",
    b"\r",
    b'"',
    b",",
    b"\t",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"NaN",
    b"-1",
    b"1e999",
    b"1" * 5000,
    b"[]",
    b"{}",
    b"null",
    b'{"a":' * 20_000,
    DEEP,
    b"\x7f" * 8,
    b"\\ud800",
    b"sep=;\n",
)
NESTED: Any = 0
for _ in range(60):
    NESTED = [NESTED]
VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0",
    "\n",
    "a\r\nb",
    "\x00",
    "\ud800",
    "(",
    "(a+)+$",
    "../..",
    "é" * 300,
    "x" * 5000,
    [],
    [0],
    ["x"],
    [None],
    {},
    {"x": 0},
    {"type": "Sequence"},
    NESTED,
)


class Step(NamedTuple):
    """A change of bytes at a share of the input, over some bytes."""

    kind: str
    at: int
    length: int
    text: bytes


class Edit(NamedTuple):
    """A change of the value at a share of all places in a nested value."""

    kind: str
    at: int
    value: Any


class Change(NamedTuple):
    """What is done to a good input; `pick` chooses among several of them."""

    pick: int
    edits: list[Edit]
    steps: list[Step]


def _flipped(x: bytes, i: int, j: int, text: bytes) -> bytes:
    del text
    return x[:i] + bytes(b ^ 1 << (j - i) % 8 for b in x[i : i + 1]) + x[i + 1 :]


def _swapped(x: bytes, i: int, j: int, text: bytes) -> bytes:
    """Exchange the token at i and one after it."""
    del text
    first = re.compile(rb"\w+").search(x, i)
    second = first and re.compile(rb"\w+").search(x, max(first.end(), j))
    if not first or not second:
        return x
    a, b = first.span(), second.span()
    return x[: a[0]] + second[0] + x[a[1] : b[0]] + first[0] + x[b[1] :]


def _numbered(x: bytes, i: int, j: int, text: bytes) -> bytes:
    """Replace the next number."""
    del j
    found = re.compile(rb"-?\d[\d.]*").search(x, i)
    return x[: found.start()] + text + x[found.end() :] if found else x


def _recoded(x: bytes, i: int, j: int, text: bytes) -> bytes:
    del text
    codec = ("utf-16", "utf-8-sig", "utf-32", "latin-1", "utf-16-be", "cp500")[j % 6]
    return x.decode("utf-8", "replace").encode(codec, "replace")


BYTES: dict[str, Callable[[bytes, int, int, bytes], bytes]] = {
    "flip": _flipped,
    "insert": lambda x, i, j, text: x[:i] + text + x[i:],
    "delete": lambda x, i, j, text: x[:i] + x[j:],
    "double": lambda x, i, j, text: x[:j] + x[i:],
    "replace": lambda x, i, j, text: x[:i] + text + x[j:],
    "cut": lambda x, i, j, text: x[:i],
    "swap": _swapped,
    "number": _numbered,
    "recode": _recoded,
}
EDITS = ("set", "delete", "rename", "double")


def changes() -> st.SearchStrategy[Change]:
    """Random changes; a change without edits and steps is one of them."""
    place = st.integers(0, SPAN - 1)
    text = st.one_of(st.sampled_from(TEXTS), st.binary(max_size=6))
    step = st.builds(
        Step, st.sampled_from(list(BYTES)), place, st.integers(0, 64), text
    )
    edit = st.builds(Edit, st.sampled_from(EDITS), place, st.sampled_from(VALUES))
    some = st.lists(step, max_size=2)
    return st.builds(Change, place, st.lists(edit, max_size=2), some)


def stepped(data: bytes, steps: list[Step]) -> bytes:
    """The bytes after all steps."""
    for kind, at, length, text in steps:
        i = at * (len(data) + 1) // SPAN
        data = BYTES[kind](data, i, i + length, text)
    return data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a nested value."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            yield from _places(value[key])


def edited(value: Any, edits: list[Edit]) -> Any:
    """A copy of a nested value after all edits."""
    root = [copy.deepcopy(value)]
    for kind, at, new in edits:
        found = list(_places(root))
        within, key = found[at * len(found) // SPAN]
        if within is root or kind == "set":
            within[key] = copy.deepcopy(new)
        elif kind == "delete":
            del within[key]
        elif isinstance(within, list):
            within.append(within[key])
        else:
            name = new if isinstance(new, str) and kind == "rename" else f"{key}_"
            within[name] = within[key] if kind == "double" else within.pop(key)
    return root[0]


@contextlib.contextmanager
def in_time(seconds: float = SECONDS) -> Iterator[None]:
    """Fail what takes longer."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


Subject = Callable[[Change, Path], Any]


def run(subject: Subject, folder: Path, count: int, fixed: bool) -> Counter:
    """Run a subject on random changes; return counts of "examples" and of refusals.

    `subject(change, folder)` reads an input, raises a UserError of one line, or fails.

    Args:
      fixed: whether the changes are the same in each process.
    """
    counts = Counter()

    @hypothesis.settings(
        max_examples=count,
        derandomize=fixed,
        database=None,
        deadline=None,
        print_blob=not fixed,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(changes())
    def judge(change: Change) -> None:
        counts["examples"] += 1
        counts["refused"] += judged(subject, change, folder)

    judge()
    return counts


def judged(subject: Subject, change: Change, folder: Path) -> bool:
    """Whether an input is refused, in one line."""
    try:
        with in_time():
            subject(change, folder)
    except UserError as e:
        assert len(str(e).splitlines()) == 1, f"not one line: {str(e)!r}"
        return True
    return False
