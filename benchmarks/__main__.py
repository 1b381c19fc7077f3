"""Measure side by side, and write what was found.

    python -m benchmarks [--only=step,gemm] [--json=FILE [--resume]]
    python -m benchmarks --page

Each row compares two ways that take turns, after a check that both compute the same
thing. A table goes to stdout; a ratio above 1 means that ours is faster. The exit code
is 1 if a check found a difference.
"""

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, page, rows
from benchmarks.case import Options, chosen, flag
from benchmarks.cases import CASES
from hypelora_jax import files
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.errors import UserError
from hypelora_jax.sharding import memory

FOLDERS = ("--glue", "--baseline")


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    out = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    out.add_argument("--only", default="", help="beginnings of names of rows")
    about = "write all that was measured"
    add = out.add_argument
    add("--json", action=PathFlag, default="", metavar="FILE", help=about)
    about = "leave out the rows that FILE has, and add the others to it"
    add("--resume", action="store_true", help=about)
    about = "only write docs/benchmarks.md, from benchmarks/measured"
    add("--page", action="store_true", help=about)
    seconds, about = Options().seconds, "of the turns of one row"
    add("--seconds", type=float, default=seconds, help=about)
    about = "data of GLUE, for epoch and padding"
    add("--glue", action=PathFlag, default="", metavar="DIR", help=about)
    about = "checkout of an older version with its own .venv, for start"
    add("--baseline", action=PathFlag, default="", metavar="DIR", help=about)
    about = "where the rows `device` run; see benchmarks/device.sh"
    add("--device", choices=("", "gpu"), default="", help=about)
    return out


def before(args: argparse.Namespace) -> list[rows.Row]:
    """Rows of the file that --resume goes on with.

    Raises:
      UserError: there is no flag --json.
    """
    if not args.resume:
        return []
    if not args.json:
        raise UserError("--resume was given without --json; expected --json=FILE")
    if not Path(args.json).exists():
        return []
    return rows.from_json(json.loads(Path(args.json).read_text()))


def shown(argv: Sequence[str]) -> str:
    """The command as a reader can give it: the folders of its data are DIR."""
    out = list(argv)
    for i, word in enumerate(argv):
        name = word.partition("=")[0]
        if name in FOLDERS and name != word:
            out[i] = f"{name}=DIR"
        elif i and argv[i - 1] in FOLDERS:
            out[i] = "DIR"
    return shlex.join(["python", "-m", "benchmarks", *out])


def run(argv: Sequence[str]) -> int:
    """Measure the chosen rows, print them and write the files."""
    args = parser().parse_args(argv)
    if args.page:
        page.write()
        return 0
    options = Options(args.seconds, args.glue, args.baseline, args.device)
    cases, left = chosen(CASES, args.only, options)
    for name, need in left.items():
        print(f"{name} is left out: it needs {flag(need)}", file=sys.stderr)
    memory.keep()  # as `hypelora train` does; the rivals' memory is kept, too
    about = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "command": shown(argv),
        "date": datetime.date.today().isoformat(),
    }
    found = before(args)
    there = {row.name for row in found}
    for name, case in cases.items():
        if name in there:
            continue
        for row in case.run(options):
            found.append(row)
            print(rows.table([row.fields()]).splitlines()[-1], file=sys.stderr)
            if args.json:  # after each row, so that a failure loses none
                files.write_json(args.json, rows.to_json(about, found))
    told = rows.to_json(about, found)
    print(page.heading(told), rows.table(told["rows"]), sep="\n\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except rows.Mismatch as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
