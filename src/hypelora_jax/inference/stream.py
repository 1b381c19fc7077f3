"""Answers a stream of rows in order, window by window, in bounded memory."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from absl import logging
from etils import epath
from tqdm.auto import tqdm

from hypelora_jax.data import formats as formats_lib
from hypelora_jax.data.batches import warn_of_cut
from hypelora_jax.data.formats import FORMATS, Format, lines
from hypelora_jax.data.formats.sheet import Bad
from hypelora_jax.errors import UserError, choose
from hypelora_jax.inference import inputs, writers
from hypelora_jax.inference.inputs import Example, Examples
from hypelora_jax.inference.predictor import WINDOW, Answers, Predictor, answer
from hypelora_jax.inference.task_adapters import TaskAdapters
from hypelora_jax.inference.writers import Writer, json_lines, table
from hypelora_jax.train.conditioning.nearness import Nearest
from hypelora_jax.train.divergence import NotFinite

FIRST = 64  # rows of the first window, for an early answer; each window doubles
STREAMED = {name: one for name, one in FORMATS.items() if one.is_text}
Window = list[Example | Bad]
Answerer = Callable[[list[Example]], Answers]


class Stream(NamedTuple):
    """Where rows come from and go to, and how they are read; "-" is stdin or stdout."""

    input: str = "-"
    output: str = "-"
    format: str = ""  # a key of FORMATS, for files whose suffix names no format
    skip: bool = False  # skip bad lines; otherwise the first one ends the stream
    text: str = ""  # columns of the texts; "" finds them by name
    text_b: str = ""


def formats(stream: Stream) -> tuple[Format, Format]:
    """Return the formats of input and output.

    The suffix of a file names its format. Streams, and files with --format, have that
    format whatever their suffix. Without either, streams and files without a suffix are
    JSON lines, and an output that has none has the format of the input.

    Raises:
      UserError: --format is unknown, or contradicts the suffixes of both files, or a
        suffix is not known.
    """
    named = choose(STREAMED, stream.format, "--format") if stream.format else None
    source = _suffixed("--input", stream.input, named)
    target = _suffixed("--output", stream.output, named)
    if named and source and target and named not in (source, target):
        raise UserError(
            f"--format={stream.format} is given, but the suffixes of {stream.input} "
            f"and {stream.output} already say their formats; leave the flag out"
        )
    source = source or named or FORMATS["jsonl"]
    fallback = source if source.is_text else FORMATS["jsonl"]
    return source, target or named or fallback


def _suffixed(flag: str, path: str, named: Format | None) -> Format | None:
    """Return the format of a suffix, or None for "-" and files without a suffix."""
    known = formats_lib.format_of(path)
    writes = flag == "--output"
    suffix = "" if path == "-" else epath.Path(path).suffix
    if known is None and named is not None:
        return None
    if (known is None and suffix) or (known and writes and not known.is_text):
        raise UserError(
            f"{flag}={path} ends in {suffix!r}; expected one of "
            f"{formats_lib.suffixes(only_text=writes)}. Rename it, or name the format "
            "of another suffix with --format"
        )
    return known


def predict(predictor: Predictor, stream: Stream) -> Counter[str]:
    """Answer all rows of the input; the output is flushed after each window.

    Returns:
      The numbers of rows that were `answered`, `skipped`, `cut` and `abstained` from,
      and those for which the model's outputs were `not_finite`.

    Raises:
      UserError: the header cannot be used, or a line is bad and is not to be skipped.
        The message names the line; the lines before it are answered first. A line is
        bad, too, if the model's outputs for it are NaN or infinite; if they are for
        every line, skipping does not help.
    """
    source, target = formats(stream)
    data, tally = predictor.settings.data, Counter[str]()
    trained = (data.text, data.text_b)
    asked = (stream.text, stream.text_b)
    wanted = inputs.names(predictor.task.pair, *asked, trained, data.label)
    if predictor.tasks is not None:
        wanted = wanted._replace(tasks=predictor.tasks)
    elif predictor.vectors is not None:
        name = data.condition or "condition"
        wanted = wanted._replace(condition=name, vectors=predictor.vectors)
    answers = _answerer(predictor)
    sheet = formats_lib.read(stream.input, source)
    header, items = inputs.read(sheet, wanted)
    with writers.opened(stream.output) as write, _bar(stream) as advance:
        try:
            for window, writer in _written(predictor, target, header, items, write):
                _answer(answers, writer, write, window, stream.skip, tally)
                advance(window[-1].read, tally)
        finally:
            if not isinstance(sys.exception(), BrokenPipeError):  # quiet for `| head`
                _summarise(predictor, tally)
        if tally["not_finite"] and not tally["answered"]:
            raise UserError(
                "no line has an answer, because the model's outputs for all "
                f"{tally['not_finite']} are NaN or infinite; expected finite numbers. "
                "Train or import the run again"
            )
    return tally


def _answerer(predictor: Predictor) -> Answerer:
    """Return the function that answers rows; tasks of rows share a bank of adapters."""
    if predictor.tasks is not None:
        adapters = TaskAdapters(predictor, slots=max(predictor.answerers))

        def of_tasks(rows: list[Example]) -> Answers:
            asked = [row.asked for row in rows if row.asked is not None]
            return adapters.answer([row.texts for row in rows], asked)

        return of_tasks

    def of_texts(rows: list[Example]) -> Answers:
        given = None
        if predictor.vectors is not None:
            given = [row.condition for row in rows]
        return answer(predictor, [row.texts for row in rows], given)

    return of_texts


def _written(
    predictor: Predictor,
    target: Format,
    header: list[str] | None,
    items: Examples,
    write: Callable[[str], None],
) -> Iterator[tuple[Window, Writer]]:
    """Yield windows with their writer; write its header as soon as it is known.

    If JSON lines are written as a table, its columns are the names in the first window
    that has a row.
    """
    writer = None
    if header or not target.is_table:
        writer = _writer(predictor, target, header or [])
        write(writer.header())
    for window in _windows(items):
        good = [item for item in window if isinstance(item, Example)]
        if writer is None and good:
            columns = dict.fromkeys(name for row in good for name in row.cells)
            writer = _writer(predictor, target, list(columns))
            write(writer.header())
        yield window, writer or _writer(predictor, target, [])  # no row uses it


def _writer(predictor: Predictor, target: Format, columns: list[str]) -> Writer:
    if target.is_table:
        added = [] if predictor.tasks is None else Nearest._fields
        return table(target, columns, [*predictor.columns, *added])
    return json_lines()


def _windows(items: Examples) -> Iterator[Window]:
    """Yield the items up to a pause or a full window; the first windows are small."""
    size = FIRST
    out: Window = []
    for item in items:
        if item is not None:
            out.append(item)
        if out and (item is None or len(out) == size):
            yield out
            size, out = min(2 * size, WINDOW), []
    if out:
        yield out


def _answer(
    answerer: Answerer,
    writer: Writer,
    write: Callable[[str], None],
    window: Window,
    skip: bool,
    tally: Counter[str],
) -> None:
    """Answer the rows of a window; bad lines are skipped, or the first one raises."""
    bad = [item for item in window if isinstance(item, Bad)]
    if bad and not skip:
        window = window[: window.index(bad[0])]
    good = [item for item in window if isinstance(item, Example)]
    try:
        answers = answerer(good)
    except NotFinite as e:
        tally["not_finite"] += len(e.rows)
        rest = _without_answers(window, {good[i].line for i in e.rows})
        return _answer(answerer, writer, write, rest, skip, tally)
    tally["cut"] += answers.cut
    out = []
    for row, fields in zip(good, answers.fields, strict=True):
        try:
            out.append(writer.row(row.cells, fields))
        except UserError as e:  # the table's header has no column for a cell
            bad.append(Bad(row.line, str(e), row.read))
            if not skip:
                bad = bad[-1:]
                break
            continue
        tally["answered"] += 1
        tally["abstained"] += fields.get("abstained", False)
    write("".join(out))
    if bad and not skip:
        raise UserError(
            f"input line {bad[0].line}: {bad[0].what}. Repair it, or leave such lines "
            "out with --on-error=skip"
        )
    tally["skipped"] += len(bad)
    for one in bad:
        logging.warning("skipped input line %d: %s", one.line, one.what)


def _without_answers(window: Window, numbers: set[int]) -> Window:
    """Return the window with the rows of these lines made bad lines."""
    what = (
        "the model's outputs for it are NaN or infinite; expected finite numbers (if "
        "other lines have none either, train or import the run again)"
    )
    return [
        Bad(item.line, what, item.read) if item.line in numbers else item
        for item in window
    ]


def _summarise(predictor: Predictor, tally: Counter[str]) -> None:
    """Log what cannot be seen in the output: cut, skipped and unlabelled texts."""
    answered, skipped = tally["answered"], tally["skipped"]
    warn_of_cut(tally["cut"], answered, predictor.settings.data.max_length)
    if skipped:
        logging.warning("skipped %d of %d lines", skipped, skipped + answered)
    if predictor.abstain:
        unlabelled, limit = tally["abstained"], predictor.abstain
        logging.info(
            "%d of %d texts got no label (confidence below %g)",
            unlabelled,
            answered,
            limit,
        )


@contextmanager
def _bar(stream: Stream) -> Iterator[Callable[[int, Counter[str]], None]]:
    """Show progress in bytes of the input, if only stderr is a terminal."""
    shown = sys.stderr.isatty() and not (stream.output == "-" and sys.stdout.isatty())
    total = lines.size_of(stream.input) if shown else None
    look = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "file": sys.stderr}
    with tqdm(total=total, desc="predict", disable=not shown, **look) as bar:

        def advance(read: int, tally: Counter[str]) -> None:
            bar.set_postfix_str(f"{tally['answered']} lines", refresh=False)
            bar.update(read - bar.n)

        yield advance
