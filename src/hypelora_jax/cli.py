"""Command line: with `flags.py` the only file that knows flags, alone with ConfigDict.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a check says no,
2 the user's mistake, 3 our fault, 75 preempted and saved, 130 interrupted and saved.
"""

import argparse
import difflib
import importlib
import importlib.util
import logging
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

import hypelora_jax
from hypelora_jax import commands, files
from hypelora_jax.config import settings
from hypelora_jax.errors import UserError, explain
from hypelora_jax.flags import (
    EXPORT,
    FLAGS,
    IMPORT,
    NAMES,
    PREDICT,
    SAMPLING,
    SERVE,
    UNCERTAINTY,
)

EXAMPLES = """examples:
  hypelora train --config=demo --workdir=runs/demo
  hypelora train --config=glue:task=cola,method=lora --workdir=runs/cola \\
      --config.optim.lr=3e-4
  hypelora evaluate --workdir=runs/cola --split=validation
  hypelora metrics --predictions=runs/cola/eval/validation/predictions.npz

COMMAND --help shows the flags of a command.
"""
COMMANDS = {
    "train": (commands.train, ("run_config", "workdir")),
    "evaluate": (commands.evaluate, ("workdir", "split")),
    "calibrate": (commands.calibrate, ("workdir", "method")),
    "uncertainty": (commands.uncertainty, UNCERTAINTY),
    "predict": (commands.predict, PREDICT),
    "serve": (commands.serve, SERVE),
    "metrics": (commands.metrics, ("predictions", *SAMPLING)),
    "report": (commands.report, ("workdirs", "html", "split", "redraws", "formats")),
    "export": (commands.export, EXPORT),
    "import": (commands.import_adapter, IMPORT),
    "prepare": (commands.prepare, ("config",)),
    "plan": (commands.plan, ("config", "topology")),
    "doctor": (commands.doctor, ()),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # XLA's chatter about set-up
    try:
        answer = _run(argv)
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not at exit
        return 1 if answer is False else 0
    except BrokenPipeError:  # the reader of stdout had enough: `hypelora ... | head`
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
    """Writes what stdout still holds, or drops it: it must not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Config of `NAME[:args]` or `PATH.py[:args]`, with `--config.x.y=value` overrides.

    Raises:
      UserError: no such config, argument or field, or a value of the wrong type.
    """
    name, _, arg = spec.partition(":")
    module = _config_module(name)
    try:
        config = module.get_config(arg or None)
    except UserError:
        raise
    except Exception as error:  # the file may be the user's: anything may happen
        raise UserError(f"config {name}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config {name}: get_config returned {type(config).__name__}; "
            "wanted a ml_collections.ConfigDict"
        )
    _override(config, overrides)
    return config


def _run(argv: Sequence[str]) -> bool | None:
    rest, overrides = _split(argv)
    args = vars(_parser().parse_args(rest))
    command, name = args.pop("command"), args.pop("name")
    del args["debug"]  # main looks for it, so that it works for wrong flags too
    if args.get("config"):
        config = load_config(args["config"], overrides)
        args["config"] = settings.from_dict(config.to_dict())
    elif overrides:
        raise UserError(
            f"{name} got {overrides[0]}, but reads the config of the run in --workdir; "
            "wanted no --config flags"
        )
    log_to_stderr()
    return command(**args)


def log_to_stderr(*launchers: str) -> None:
    """Our own messages from INFO on, other packages' from WARNING on.

    `launchers` are files outside the package whose messages count as ours.
    """
    ours = (str(Path(hypelora_jax.__file__).parent), *launchers)
    handler = logging.StreamHandler()
    handler.addFilter(
        lambda r: r.levelno >= logging.WARNING or r.pathname.startswith(ours)
    )
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[handler], force=True
    )
    absl_logging.set_verbosity(absl_logging.INFO)


def launch(file: str, work: Callable[[], None]) -> int:
    """Runs the work of a launcher as a command: its logs, one line an error, the code.

    `file` is the launcher's; its messages count as ours.
    """
    log_to_stderr(file)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hypelora",
        description="Hyper-network-generated LoRA with calibrated confidence.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"hypelora {hypelora_jax.__version__}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (command, keys) in COMMANDS.items():
        text = command.__doc__.splitlines()[0]
        sub = subparsers.add_parser(
            name, help=text, description=text, allow_abbrev=False
        )
        for key in keys:
            flag = NAMES.get(key, key)
            dest = key if key == "workdirs" else flag.replace("-", "_")
            sub.add_argument(f"--{flag}", dest=dest, **FLAGS[key])
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        sub.set_defaults(command=command, name=name)
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without and with the form `--config.x=value` or `--config.x value`."""
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


def _config_module(name: str) -> ModuleType:
    if "/" not in name and not name.endswith(".py"):
        installed = importlib.import_module("hypelora_jax.configs")
        known = [
            m.name for m in pkgutil.iter_modules(installed.__path__) if not m.ispkg
        ]
        if name not in known:
            raise UserError(
                f"no config {name!r}; wanted one of {', '.join(known)}, or the path "
                "of a config file"
            )
        return importlib.import_module(f"hypelora_jax.configs.{name}")
    spec = importlib.util.spec_from_file_location("hypelora_user_config", name)
    if spec is None or not Path(name).is_file():
        raise UserError(f"no config file {name!r}; wanted a .py file that exists")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's: anything may happen
        raise UserError(f"config {name}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"config {name} defines no get_config; wanted get_config(arg)")
    return module


def _override(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Applies `--config.x=value` flags in place, typed like the fields they replace."""
    config.lock()
    for flag in overrides:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", flag):
            _check_field(config, match[1])
    argv = ["hypelora", *overrides]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        values(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_type(config, str(error))) from error
    except flags.Error as error:
        raise UserError(str(error)) from error


def _wrong_type(config: ConfigDict, message: str) -> str:
    """Our form of absl's `flag --config.x=value: reason`."""
    match = re.match(r"flag --(?:no)?config\.([^=]+)=(.*?): ", message, re.S)
    if match is None:
        return message
    section, _, field = match[1].rpartition(".")
    kind = (config[section] if section else config).get_type(field)
    return f"config.{match[1]} is {match[2]!r}; wanted {kind.__name__}"


def _check_field(config: ConfigDict, path: str) -> None:
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, ConfigDict):
            raise UserError(f"config has no field {path!r}; wanted one name less")
        if name not in node:
            known = sorted(node)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(
                f"config has no field {path!r}; {hint}wanted one of {', '.join(known)}"
            )
        node = node[name]
    if isinstance(node, ConfigDict):
        raise UserError(
            f"config.{path} is a section; wanted one of its fields, "
            f"--config.{path}.FIELD=VALUE with {', '.join(sorted(node))}"
        )


if __name__ == "__main__":
    sys.exit(main())
