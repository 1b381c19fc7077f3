"""The command line: parses the arguments, runs the command, returns its exit code.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 a check did
not pass, 2 a user error, 3 an internal error, 75 preempted and saved, 130 interrupted
and saved.
"""

import argparse
import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import logging as absl_logging

import hypelora_jax
from hypelora_jax import files
from hypelora_jax.commands import COMMANDS
from hypelora_jax.config.loading import load_config, load_settings
from hypelora_jax.errors import UserError, explain
from hypelora_jax.sharding import memory

__all__ = ["COMMANDS", "launch", "load_config", "log_to_stderr", "main"]

EXAMPLES = """examples:
  hypelora train --config=demo --workdir=runs/demo
  hypelora train --config=glue:task=cola,method=lora --workdir=runs/cola \\
      --config.optim.lr=3e-4
  hypelora evaluate --workdir=runs/cola --split=validation
  hypelora metrics --predictions=runs/cola/eval/validation/predictions.npz

COMMAND --help shows the flags of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # hide XLA's set-up messages
    # Imports and tracing make many objects that stay. Looking for garbage among them
    # after every 700, Python's default, took a tenth of the time to the first step.
    gc.set_threshold(200_000)
    try:
        answer = _run(argv)
        sys.stdout.flush()  # a full disk or a closed pipe fails here, not at exit
        return 1 if answer is False else 0
    except BrokenPipeError:  # the reader closed stdout: `hypelora ... | head`
        _settle_stdout()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        _settle_stdout()
        if "--debug" in argv:
            traceback.print_exc()
        code, line = explain(error)
        print(f"hypelora: {line}", file=sys.stderr)
        return code


def _settle_stdout() -> None:
    """Flush stdout, or send it to /dev/null so that it does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str]) -> bool | None:
    rest, overrides = _split(argv)
    args = vars(parser(rest).parse_args(rest))
    name = args.pop("command")
    del args["debug"]  # `main` reads it, so that it works for wrong flags too
    offline = args.pop("offline", False)  # only commands that may download have it
    if args.get("config") is not None:
        args["config"] = load_settings(args["config"], overrides)
    elif overrides:
        raise UserError(
            f"{name} got {overrides[0]}, but it reads the config of the run in "
            "--workdir; expected no --config flags"
        )
    log_to_stderr()
    if name != "serve":  # which runs for weeks, so its memory must not fragment
        memory.keep()
    with files.offline(offline):
        return COMMANDS[name].run(**args)


def log_to_stderr(*launchers: str) -> None:
    """Log this package's messages from INFO on, and others' from WARNING on.

    `launchers` are files outside the package. Their messages, and those of modules in
    the same folder, are logged as the package's own.
    """
    package = Path(hypelora_jax.__file__).parent
    folders = {Path(file).parent for file in launchers}

    def is_ours(record: logging.LogRecord) -> bool:
        path = Path(record.pathname)
        return path.is_relative_to(package) or path.parent in folders

    handler = logging.StreamHandler()
    handler.addFilter(lambda r: r.levelno >= logging.WARNING or is_ours(r))
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[handler], force=True
    )
    absl_logging.set_verbosity(absl_logging.INFO)


def launch(file: str, work: Callable[[], None]) -> int:
    """Run a launcher's work like a command, and return its exit code.

    `file` is the path of the launcher; `log_to_stderr` says whose messages are logged.
    An error is printed as one line.
    """
    log_to_stderr(file)
    memory.keep()
    files.keep_compiled()
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:
        code, line = explain(error)
        print(f"{Path(file).stem}: {line}", file=sys.stderr)
        return code
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser of a command line, with the flags of the command it names.

    Other commands are added without their flags, because the choices of some flags are
    the keys of tables whose import takes seconds.
    """
    made = _Parser(
        prog="hypelora",
        description="Hyper-network-generated LoRA with calibrated confidence.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"hypelora {hypelora_jax.__version__}"
    made.add_argument("--version", action="version", version=version)
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    parsers = made.add_subparsers(metavar="COMMAND", required=True, dest="command")
    asked = next((word for word in argv if not word.startswith("-")), "")
    for name, command in COMMANDS.items():
        text = (command.__doc__ or "").partition("\n")[0]
        sub = parsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == asked:
            command.add_flags(sub)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
    return made


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into (others, overrides of the config).

    An override has the form `--config.x=value` or `--config.x value`.
    """
    rest, overrides = [], []
    queue = list(argv)
    while queue:
        arg = queue.pop(0)
        if not re.match(r"--?(no)?config\.", arg):
            rest.append(arg)
            continue
        overrides.append(arg)
        if "=" not in arg and queue and not queue[0].startswith("--"):
            overrides.append(queue.pop(0))
    return rest, overrides


if __name__ == "__main__":
    sys.exit(main())
