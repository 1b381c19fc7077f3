"""Write the tasks of the relabelling benchmark; the package's docstring explains them.

python -m experiments.relabelling --output=DIR
"""

import argparse
import sys

from etils import epath

from hypelora_jax import cli, files
from hypelora_jax.commands.shared.flags import PathFlag

from . import sentences, tasks, write
from .attributes import DOMAINS


def run(args: argparse.Namespace) -> None:
    """Draw the tasks, write them, and print how many there are of each group."""
    folder = epath.Path(args.output)
    files.check_empty(folder, "--output")
    some = sentences.read()
    splits = sentences.splits_of(some, args.seed)
    only = tuple(filter(None, args.only.split(",")))
    about = {"seed": args.seed, "without_domain": args.without_domain, "e1": args.e1}
    if args.e1:
        made, dropped = tasks.one_domain_out(some, splits, args.seed, args.e1), []
    else:
        made, dropped = tasks.relabelling(
            some, splits, args.seed, args.without_domain, args.more, only
        )
    write.write(folder, some, splits, made, about | {"dropped": dropped})
    print(f"{len(some)} sentences\n{write.summary(made, dropped)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    out = argparse.ArgumentParser(
        prog="python -m experiments.relabelling",
        description="Write the tasks of the relabelling benchmark.",
    )
    out.add_argument("--output", action=PathFlag, required=True)
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--more", action="store_true", help="more attributes to train")
    out.add_argument(
        "--only", default="", metavar="A,B", help="attributes; by default all"
    )
    one = out.add_mutually_exclusive_group()
    for flag, what in (
        ("--without-domain", "a domain that is left out of training"),
        ("--e1", "one opinion in four domains, of which this one is held out"),
    ):
        one.add_argument(flag, default="", choices=list(DOMAINS), help=what)
    return out


if __name__ == "__main__":
    args = parser().parse_args()
    sys.exit(cli.launch(__file__, lambda: run(args)))
