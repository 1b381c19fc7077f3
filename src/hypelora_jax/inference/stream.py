"""A stream of rows answered in its order, window by window, in bounded memory."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from absl import logging
from tqdm.auto import tqdm

from hypelora_jax.data.batches import warn_of_cut
from hypelora_jax.errors import UserError
from hypelora_jax.inference import lines, rows, writers
from hypelora_jax.inference.predictor import WINDOW, Loaded, answer
from hypelora_jax.inference.rows import Bad, Row, Rows
from hypelora_jax.inference.writers import Writer, json_lines, table

FIRST = 64  # rows of the first window: an early answer; each window doubles


class Plan(NamedTuple):
    """Where rows come from and go to; "-" is stdin and stdout."""

    input: str = "-"
    output: str = "-"
    kind: str = ""  # jsonl, csv or tsv, where a suffix does not say it
    skip: bool = False  # bad lines are skipped; else the first one ends all
    text: str = ""  # columns of the texts; "": found by name
    text_b: str = ""


def kinds(plan: Plan) -> tuple[str, str]:
    """Formats of input and output: by suffix, else --format, else as the other side.

    Raises:
      UserError: both suffixes say it, and --format says something else.
    """
    known = [
        next((k for s, k in rows.SUFFIXES.items() if path.lower().endswith(s)), "")
        for path in (plan.input, plan.output)
    ]
    if plan.kind and all(known) and plan.kind not in known:
        raise UserError(
            f"--format={plan.kind}, but the suffixes of {plan.input} and {plan.output} "
            "say what they are; leave the flag out"
        )
    source = known[0] or plan.kind or "jsonl"
    return source, known[1] or plan.kind or source


def run(model: Loaded, plan: Plan) -> Counter:
    """Answer all rows of the input; what is answered is flushed window by window.

    Returns:
      How many rows were `answered`, `skipped`, `cut` and `abstained` from.

    Raises:
      UserError: a header that cannot be used; or a bad line that is not to be skipped,
        with its number, once the lines before it are answered.
    """
    source, target = kinds(plan)
    data, tally = model.run.bench.settings.data, Counter()
    own = (data.text, data.text_b)
    wanted = rows.names(model.task.pair, plan.text, plan.text_b, own)
    header, items = rows.read(source, lines.read(plan.input), wanted)
    windows = _windows(items)
    with writers.opened(plan.output) as write, _bar(plan) as seen:
        try:
            writer = None
            if target == "jsonl" or header:
                writer = _writer(model, target, header or [])
                write(writer.header())
            for window in windows:
                good = [row for row in window if isinstance(row, Row)]
                if writer is None and good:  # a table of JSON lines
                    every = dict.fromkeys(name for row in good for name in row.cells)
                    writer = _writer(model, target, list(every))
                    write(writer.header())
                _answer(model, writer, write, window, plan.skip, tally)
                seen(window[-1].read, tally)
        finally:
            if not isinstance(sys.exception(), BrokenPipeError):  # quiet: | head
                _report(model, tally)
    return tally


def _writer(model: Loaded, kind: str, columns: list[str]) -> Writer:
    return json_lines() if kind == "jsonl" else table(kind, model, columns)


def _windows(items: Rows) -> Iterator[list[Row | Bad]]:
    """Items up to a pause or a full window; the first windows are small."""
    size, out = FIRST, []
    for item in items:
        if item is not None:
            out.append(item)
        if out and (item is None or len(out) == size):
            yield out
            size, out = min(2 * size, WINDOW), []
    if out:
        yield out


def _answer(
    model: Loaded,
    writer: Writer | None,
    write: Callable[[str], None],
    window: list[Row | Bad],
    skip: bool,
    tally: Counter,
) -> None:
    """Answer the rows of a window; its first bad line ends it, or is skipped."""
    bad = [item for item in window if isinstance(item, Bad)]
    if bad and not skip:
        window = window[: window.index(bad[0])]
    good = [item for item in window if isinstance(item, Row)]
    answers = answer(model, [row.texts for row in good])
    tally["cut"] += answers.cut
    out = []
    for row, fields in zip(good, answers.fields, strict=True):
        try:
            out.append(writer.row(row.cells, fields))
        except UserError as e:  # no place in the table's header
            bad.append(Bad(row.line, str(e), row.read))
            if not skip:
                bad = bad[-1:]
                break
        tally["answered"] += 1
        tally["abstained"] += fields.get("abstained", False)
    write("".join(out))
    if bad and not skip:
        raise UserError(
            f"input line {bad[0].line}: {bad[0].what}: repair it, or leave such lines "
            "out with --on-error=skip"
        )
    tally["skipped"] += len(bad)
    for one in bad:
        logging.warning("skipped input line %d: %s", one.line, one.what)


def _report(model: Loaded, tally: Counter) -> None:
    """Lines about what a user would not see in the output."""
    warn_of_cut(
        tally["cut"], tally["answered"], model.run.bench.settings.data.max_length
    )
    if tally["skipped"]:
        said = tally["skipped"], tally["skipped"] + tally["answered"]
        logging.warning("skipped %d of %d lines", *said)
    if model.abstain:
        said = tally["abstained"], tally["answered"], model.abstain
        logging.info("no label for %d of %d texts (below %g)", *said)


@contextmanager
def _bar(plan: Plan) -> Iterator[Callable[[int, Counter], None]]:
    """A progress bar in bytes of the input, where a person looks at stderr alone."""
    shown = sys.stderr.isatty() and not (plan.output == "-" and sys.stdout.isatty())
    total = lines.size_of(plan.input) if shown else None
    look = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "file": sys.stderr}
    with tqdm(total=total, desc="predict", disable=not shown, **look) as bar:

        def seen(read: int, tally: Counter) -> None:
            bar.set_postfix_str(f"{tally['answered']} lines", refresh=False)
            bar.update(read - bar.n)

        yield seen
