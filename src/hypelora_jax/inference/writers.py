"""Answers beside the cells they belong to, as JSON lines, CSV or TSV."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from absl import logging
from etils import epath

from hypelora_jax.data.readers import shown
from hypelora_jax.errors import UserError
from hypelora_jax.inference.predictor import Loaded, broken
from hypelora_jax.inference.rows import DELIMITERS

Cells = dict[str, Any]
PREFIX = "input_"  # of cells whose names the answers take


class Writer(NamedTuple):
    """`header() -> text`, once, before rows; `row(cells, answer) -> text` of a line."""

    header: Callable[[], str]
    row: Callable[[Cells, Cells], str]


def joined(cells: Cells, answer: Cells) -> Cells:
    """All cells, then the answer; a cell of the same name moves to input_NAME."""
    taken, out = {*cells, *answer}, {}
    for name, value in cells.items():
        new = name
        while new in answer or (new != name and new in taken):
            new = PREFIX + new
        taken.add(new)
        out[new] = value
    return out | answer


def json_lines() -> Writer:
    """One object a line, with `probs` as an object."""

    def row(cells: Cells, answer: Cells) -> str:
        both = joined(cells, answer)
        text = json.dumps(both, ensure_ascii=False)
        return (json.dumps(both) if broken(text) else text) + "\n"

    return Writer(lambda: "", row)


def table(kind: str, loaded: Loaded, columns: Sequence[str]) -> Writer:
    """CSV or TSV with a header: the input's columns, then the answer's."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=DELIMITERS[kind], lineterminator="\n")
    blank = dict.fromkeys(names_of(loaded))
    known = set(columns)

    def line(values: Any) -> str:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(values)
        return buffer.getvalue()

    def row(cells: Cells, answer: Cells) -> str:
        if extra := [name for name in cells if name not in known]:
            raise UserError(
                f"has {shown(extra[0])}, which the first lines have not and so the "
                "header; wanted JSON lines as output: --output=FILE.jsonl"
            )
        both = joined(dict.fromkeys(columns) | cells, blank | flat(answer))
        if broken(text := line(map(_cell, both.values()))):
            raise UserError("has a cell that is not Unicode; wanted whole characters")
        return text

    return Writer(lambda: line(joined(dict.fromkeys(columns), blank)), row)


def names_of(loaded: Loaded) -> list[str]:
    """Columns that answers add to a table."""
    if loaded.task.kind == "regression":
        return ["label", "score"]
    out = ["label", "confidence", *(f"prob_{name}" for name in loaded.task.labels)]
    out += ["set"] if loaded.threshold is not None else []
    return out + (["abstained"] if loaded.abstain else [])


def flat(answer: Cells) -> Cells:
    """The answer with a cell for each probability."""
    out = {name: value for name, value in answer.items() if name != "probs"}
    return out | {f"prob_{n}": p for n, p in answer.get("probs", {}).items()}


def _cell(value: Any) -> Any:
    """A value as a cell of a table: texts as they are, lists and objects as JSON."""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value


@contextmanager
def opened(path: str) -> Iterator[Callable[[str], None]]:
    """A function that writes text to stdout, or to a file that appears when complete.

    What was written before a failure stays in FILE.part, and a warning says so.
    """
    if path == "-":
        if hasattr(sys.stdout, "reconfigure"):  # not where something stands in for it
            sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale says
        yield _to(sys.stdout)
        return
    target = epath.Path(path)
    if target.exists() and not target.is_file():  # /dev/null, a pipe: not replaced
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
            logging.warning("what was answered so far is in %s", part)
        else:
            part.unlink(missing_ok=True)
        raise


def _to(file: TextIO) -> Callable[[str], None]:
    def write(text: str) -> None:
        file.write(text)
        file.flush()

    return write
