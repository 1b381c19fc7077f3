"""Writers of rows with their answers, as JSON lines, CSV or TSV."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from absl import logging
from etils import epath

from hypelora_jax.data.formats import Format, delimited
from hypelora_jax.data.formats.cells import as_json, shown
from hypelora_jax.errors import UserError
from hypelora_jax.inference.answers import Fields, flat
from hypelora_jax.run.prediction_rows import PROB

Cells = dict[str, Any]
PREFIX = "input_"  # for input cells that share a name with a field of the answer


class Writer(NamedTuple):
    """`header() -> text`, written once; `row(cells, answer) -> text` of one row."""

    header: Callable[[], str]
    row: Callable[[Cells, Fields], str]


def joined(cells: Cells, answer: Fields) -> Cells:
    """Join cells and answer; a cell with the name of a field becomes input_NAME.

    So does a cell that would be read as a probability of the answer.
    """
    taken, out = {*cells, *answer}, {}
    own = PROB if any(name.startswith(PROB) for name in answer) else ()
    for name, value in cells.items():
        new = name
        while new in answer or new.startswith(own) or (new != name and new in taken):
            new = PREFIX + new
        taken.add(new)
        out[new] = value
    return out | answer


def json_lines() -> Writer:
    """Return a writer of one JSON object per line, with `probs` as an object."""
    return Writer(
        lambda: "", lambda cells, answer: as_json(joined(cells, answer)) + "\n"
    )


def table(how: Format, columns: Sequence[str], added: Sequence[str]) -> Writer:
    """Return a writer of CSV or TSV: columns of the input, then those of the answer."""
    empty, blank = dict.fromkeys(columns), dict.fromkeys(added)

    def row(cells: Cells, answer: Fields) -> str:
        if extra := [name for name in cells if name not in empty]:
            raise UserError(
                f"it has {shown(extra[0])}, which is not in the first lines and "
                "so not in the header; expected JSON lines as output. Use "
                "--output=FILE.jsonl"
            )
        found = flat(answer)
        if other := [name for name in found if name not in blank]:
            raise UserError(
                f"its answer has {shown(other[0])}, because its task has other labels "
                "than the run, and so it is not in the header; expected JSON lines as "
                "output. Use --output=FILE.jsonl"
            )
        both = joined(empty | cells, blank | found)
        return delimited.written(both.values(), how.delimiter)

    return Writer(lambda: delimited.written(joined(empty, blank), how.delimiter), row)


@contextmanager
def opened(path: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes to stdout, or to a file that appears when complete.

    After a failure the part that was written stays in FILE.part, and a warning says so.
    """
    if path == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):  # a test may have replaced it
            sys.stdout.reconfigure(encoding="utf-8")  # the locale may differ
        yield _to(sys.stdout)
        return
    target = epath.Path(path)
    if target.exists() and not target.is_file():  # keep /dev/null or a pipe
        with target.open("w", encoding="utf-8") as file:
            yield _to(file)
        return
    if Path(path).is_symlink():
        target = epath.Path(Path(path).resolve())
    part = target.with_name(target.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield _to(file)
        part.replace(target)
    except BaseException:
        if part.exists() and part.stat().length:
            logging.warning("the answers so far are in %s", part)
        else:
            part.unlink(missing_ok=True)
        raise


def _to(file: TextIO) -> Callable[[str], None]:
    def write(text: str) -> None:
        file.write(text)
        file.flush()

    return write
