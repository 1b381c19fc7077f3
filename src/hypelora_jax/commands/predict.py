"""Add a label, confidence and probabilities to each row, and sets on request."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run, the input, the output, and the parts of an answer."""
    from hypelora_jax.data.formats import FORMATS

    flags.add_workdir(parser)
    add = parser.add_argument
    add(
        "--input",
        action=flags.PathFlag,
        default="-",
        metavar="FILE",
        help="texts: .jsonl, .csv, .tsv or .parquet; - (the default) is stdin",
    )
    add(
        "--output",
        action=flags.PathFlag,
        default="-",
        metavar="FILE",
        help=".jsonl, .csv or .tsv; - (the default) is stdout",
    )
    add(
        "--format",
        default="",
        choices=tuple(name for name, one in FORMATS.items() if one.is_text),
        help="format of stdin, stdout and files of another suffix; jsonl",
    )
    add(
        "--on-error",
        default="stop",
        choices=("stop", "skip"),
        help="at a bad line: stop (the default), or skip it and say so",
    )
    add("--text", default="", metavar="COLUMN", help="text; by default found by name")
    add("--text_b", default="", metavar="COLUMN", help="second text, of pairs")
    flags.add_answers(parser)
    flags.add_offline(parser)


def run(
    workdir: str,
    input: str,
    output: str,
    format: str,
    on_error: str,
    text: str,
    text_b: str,
    abstain: float | None,
    coverage: float | None,
    sets: str | None,
    by_class: bool,
) -> None:
    """Write each row back with its answer, in the order of the input."""
    flags.check_sets(coverage, sets, by_class)
    from hypelora_jax.inference import predictor, stream

    files.keep_compiled()
    rows = stream.Stream(input, output, format, on_error == "skip", text, text_b)
    stream.formats(rows)  # report a wrong format before the model is loaded
    model = predictor.load(workdir, coverage, sets or "thr", by_class, abstain)
    stream.predict(model, rows)
