"""Write an HTML report on one or more runs, with its tables and figures as files."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the runs, the files to write, and the split to compare on."""
    from hypelora_jax.run.paths import Run

    flags.add_workdirs(parser)
    add = parser.add_argument
    name = Run.open(".").report_file.name  # the same name as in a run folder
    add(
        "--output",
        action=flags.PathFlag,
        default=name,
        metavar="FILE",
        help="the HTML file",
    )
    flags.add_split(parser)
    add("--replicas", default=1000, type=int, help="of the bootstrap; 0: no intervals")
    add("--formats", default="html,md,csv,tex,png", help="formats to write")


def run(
    workdirs: list[str], output: str, split: str, replicas: int, formats: str
) -> None:
    """Write the report; several runs are compared with each other."""
    from hypelora_jax.report import html, series

    files.keep_compiled()
    rows = series.load_all(workdirs)
    html.write_report(rows, output, split, replicas, formats.split(","))
