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
        help="names of the classes; by default those of the run",
    )
    flags.add_new_output(parser)
    flags.add_offline(parser)


def run(workdir: str, description: str, labels: str, output: str) -> None:
    """Write the folder and print what it has as one JSON object."""
    from hypelora_jax.exchange import described

    files.keep_compiled()
    names = tuple(labels.split(",")) if labels else ()
    print(files.to_json(described.adapt(workdir, output, description, names)))
