"""Make an adapter for a described task, as a run folder like any other."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run, the task and the new folder."""
    flags.add_workdir(parser)
    add = parser.add_argument
    add("--description", required=True, help="what the task asks, in words")
    add(
        "--labels",
        default="",
        metavar="A,B",
        help="names of the classes, by default those of the run; other ones need "
        "head.kind=label_text",
    )
    about = "8 or more labelled rows to tune on: .jsonl, .csv, .tsv or .parquet"
    flags.add_path(parser, "--examples", "FILE", about)
    about = "what --examples change: condition (the default) or temperature"
    add("--tune", default="", help=about)
    flags.add_new_output(parser)
    flags.add_offline(parser)


def run(
    workdir: str, description: str, labels: str, examples: str, tune: str, output: str
) -> None:
    """Write the folder and print what it has as one JSON object."""
    from hypelora_jax.exchange import described

    files.keep_compiled()
    names = tuple(labels.split(",")) if labels else ()
    own = (description, names, examples, tune)
    print(files.to_json(described.adapt(workdir, output, *own)))
