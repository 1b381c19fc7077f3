"""Write a run as a peft adapter or a merged model, with tokenizer and card."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run, the format, the folder, and the parts to write."""
    flags.add_workdir(parser)
    add = parser.add_argument
    add(
        "--format",
        default="peft",
        help="peft: adapter and head (the default); merged: one whole model",
    )
    flags.add_new_output(parser)
    add(
        "--calibrated",
        action="store_true",
        help="divide the head's last layer by the fitted temperature, so that a "
        "plain softmax is calibrated",
    )
    add(
        "--only",
        default="",
        metavar="NAMES",
        help="seeds or conditions to export, as seed_0,seed_2; by default all",
    )
    about = (
        "for a run whose data give conditions: .npz with ids and vectors, one adapter "
        "for each; by default the run's condition.file"
    )
    flags.add_path(parser, "--conditions", "FILE", about)
    flags.add_offline(parser)


def run(
    workdir: str,
    format: str,
    output: str,
    calibrated: bool,
    only: str,
    conditions: str,
) -> None:
    """Export the run and print the folders written, one per line."""
    from hypelora_jax.data.conditions import read
    from hypelora_jax.exchange import exports

    files.keep_compiled()
    names = [name for name in only.split(",") if name]
    given = read(conditions) if conditions else None
    for path in exports.export(workdir, output, format, calibrated, names, given):
        print(path)
