"""Flags that several commands share."""

from argparse import Action, ArgumentError, ArgumentParser, Namespace
from typing import Any

from hypelora_jax import files
from hypelora_jax.errors import UserError

CONFIG = (
    "NAME[:ARG=VALUE,...] of an installed config, or the path of a config "
    "file; --config.SECTION.FIELD=VALUE overrides a field"
)


class PathFlag(Action):
    """A flag that is a path, which `files.user_path` checks; the last one counts.

    `expected` says in messages what the flag takes.
    """

    def __init__(self, *args: Any, expected: str = files.PATH, **kwargs: Any):
        self.expected = expected
        super().__init__(*args, **kwargs)

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, given: Any, flag: Any = None
    ) -> None:
        """Keep the path, with `~` expanded."""
        try:
            found = files.user_path(given, self.option_strings[0], self.expected)
        except UserError as e:
            raise ArgumentError(None, str(e)) from None
        self.keep(namespace, found)

    def keep(self, namespace: Namespace, found: str) -> None:
        """Set the flag to the path."""
        setattr(namespace, self.dest, found)


class PathFlags(PathFlag):
    """A flag that is a path and is given once for each of several."""

    def keep(self, namespace: Namespace, found: str) -> None:
        """Append the path to those before it."""
        before = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*before, found])


def add_path(parser: ArgumentParser, flag: str, metavar: str, about: str) -> None:
    """Add an optional flag that is a path; "" if it is not given."""
    parser.add_argument(flag, action=PathFlag, default="", metavar=metavar, help=about)


def add_config(parser: ArgumentParser) -> None:
    """Add the required flag --config."""
    parser.add_argument("--config", required=True, help=CONFIG)


def add_workdir(parser: ArgumentParser) -> None:
    """Add --workdir for one run folder."""
    about = "folder; may be gs://..."
    parser.add_argument(
        "--workdir", action=PathFlag, required=True, metavar="DIR", help=about
    )


def add_workdirs(parser: ArgumentParser) -> None:
    """Add --workdir, which is given once for each run folder."""
    parser.add_argument(
        "--workdir",
        dest="workdirs",
        required=True,
        metavar="DIR",
        action=PathFlags,
        help="folder of a run; give the flag once for each run",
    )


def add_offline(parser: ArgumentParser) -> None:
    """Add --offline to a command that may download; `cli` reads it for all of them."""
    about = "download nothing; stop if the model or the data are not here"
    parser.add_argument("--offline", action="store_true", help=about)


def add_new_output(parser: ArgumentParser) -> None:
    """Add --output for a new folder, which the command fills."""
    about = "folder to write; must not exist, or be empty"
    parser.add_argument(
        "--output", action=PathFlag, required=True, metavar="DIR", help=about
    )


def add_split(parser: ArgumentParser) -> None:
    """Add --split for a split of the data."""
    about = "train, calibration, validation (the default), test, or of a set of tasks "
    about += "held_out_validation and held_out_test"
    parser.add_argument("--split", default="validation", help=about)


def add_answers(parser: ArgumentParser) -> None:
    """Add the flags of answers that abstain or contain conformal sets."""
    from hypelora_jax.calibration import conformal

    add = parser.add_argument
    add(
        "--abstain",
        type=float,
        metavar="P",
        help="give no label where the confidence is below P",
    )
    add(
        "--coverage",
        type=float,
        help="add sets that contain the label with this probability: 0.9",
    )
    kinds = tuple(conformal.SETS)
    add("--sets", choices=kinds, help=f"kind of these sets; {kinds[0]}")
    add("--by_class", action="store_true", help="sets calibrated class by class")


def check_sets(coverage: float | None, sets: str | None, by_class: bool) -> None:
    """Check that --sets and --by_class are given only together with --coverage."""
    if coverage is None and (sets or by_class):
        flag = f"--sets={sets}" if sets else "--by_class"
        raise UserError(
            f"{flag} chooses the kind of sets, but no sets are asked for; expected "
            f"--coverage=0.9 as well, or no {flag}"
        )
