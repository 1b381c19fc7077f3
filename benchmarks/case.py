"""What a subject is: names of rows, and functions that measure them."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from benchmarks.rows import Row
from hypelora_jax.errors import UserError


class Options(NamedTuple):
    """What the flags of the command say."""

    seconds: float = 15.0  # of the turns of one row; see timing.compare
    glue: str = ""  # a folder in GLUE's layout
    baseline: str = ""  # a checkout of an older version, with its own .venv
    device: str = ""  # the platform of the rows `device`: gpu


def flag(need: str) -> str:
    """The flag that gives a needed option, for messages."""
    return f"--{need}={'gpu' if need == 'device' else 'DIR'}"


class Case(NamedTuple):
    """One entry of the table: what measures the rows of a name."""

    run: Callable[[Options], Iterable[Row]]
    needs: str = ""  # an option without which it cannot run


def chosen(
    cases: Mapping[str, Case], only: str, options: Options
) -> tuple[dict[str, Case], dict[str, str]]:
    """Return (cases to run, needed option of those that cannot), by name.

    Args:
      cases: all cases.
      only: beginnings of names, with commas between them; "" chooses all.
      options: those given.

    Raises:
      UserError: no case has such a name, or none of the chosen ones can run.
    """
    starts = [start for start in only.split(",") if start] or [""]
    for start in starts:
        if not any(name.startswith(start) for name in cases):
            groups = dict.fromkeys(name.split("/")[0] for name in cases)
            raise UserError(
                f"no row begins with {start!r}; expected the beginning of a name, "
                f"such as {', '.join(groups)}"
            )
    found = {n: c for n, c in cases.items() if n.startswith(tuple(starts))}
    left = {
        n: c.needs
        for n, c in found.items()
        if c.needs and not getattr(options, c.needs)
    }
    if len(left) == len(found):
        flags = " and ".join(map(flag, sorted(set(left.values()))))
        raise UserError(
            f"{', '.join(left)} cannot run without {flags}; see "
            "python -m benchmarks --help"
        )
    return {n: c for n, c in found.items() if n not in left}, left
