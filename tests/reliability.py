"""docs/reliability.md, written from the tests marked `fault`: pytest's hooks for it.

A test of a fault is marked `@pytest.mark.fault("what happens", "what the run does")`.
With `--reliability=FILE` (as `make soak` has it) a table of all that ran goes there.
"""

import datetime
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HEAD = """# Reliability

What can happen to a run, what the run then does, and the test that shows it with a real
process or a real file. This page is written by `make soak`; the tests without "soak"
are in `make test` too.

"""
FOOT = """
Not in the table: a run on an object store (`gs://...`) has no lock, because object
stores do not offer one; start one run a folder there. A signal that comes while the
program is still being imported ends it with the signal's own code: nothing was begun.
Changed files of the base model and of the data are found by the SHA-256 values in
`config.json` when a run goes on, and not during it.
"""


KINDS = Path(__file__).parent / "faults" / "kinds.md"  # the second half of the page


class Row(NamedTuple):
    """A fault and the tests that show it."""

    fault: str
    outcome: str
    test: str
    soak: bool


class Reliability:
    """Collects the outcome of every test of a fault; writes the page at the end.

    Tests may run in workers of pytest-xdist. These only give each test its row, which
    comes back with the report; the process that started them writes.
    """

    def __init__(self, path: str, worker: bool):
        self.path, self.worker = Path(path), worker
        self.rows: dict[int, Row] = {}  # by the place of the test
        self.outcomes: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items):
        for place, item in enumerate(items):
            if marker := item.get_closest_marker("fault"):
                name = item.nodeid.split("[")[0]
                soak = item.get_closest_marker("soak") is not None
                row = (place, *marker.args, name, soak)
                item.user_properties.append(("fault", row))

    def pytest_runtest_logreport(self, report):
        place, *row = dict(report.user_properties).get("fault", (None,))
        if place is None:
            return
        self.rows[place] = Row(*row)
        if report.when == "call" or report.failed:
            test = self.rows[place].test
            self.outcomes.setdefault(test, []).append(report.outcome)

    def pytest_sessionfinish(self):
        if self.worker:
            return
        tests: dict[str, list[Row]] = {}
        for _, row in sorted(self.rows.items()):
            tests.setdefault(row.test, []).append(row)
        lines = ["| fault | what happens | test | result |", "|---|---|---|---|"]
        lines += [self._line(rows) for rows in tests.values()]
        text = (
            HEAD + _when() + "\n".join(lines) + "\n" + FOOT + "\n" + KINDS.read_text()
        )
        self.path.write_text(text)

    def _line(self, rows: list[Row]) -> str:
        row, outcomes = rows[0], self.outcomes.get(rows[0].test, [])
        name = row.test.split("::")[-1].removeprefix("test_").replace("_", " ")
        link = f"[{name}](../{row.test.split('::')[0]})"
        soak = " (soak)" if all(r.soak for r in rows) else ""
        failed = len(outcomes) - outcomes.count("passed")
        result = f"**{failed} of {len(outcomes)} failed**" if failed else "passed"
        if not failed and len(outcomes) > 1:
            result += f" ({len(outcomes)} cases)"
        if not outcomes:
            result = "not run"
        return f"| {row.fault} | {row.outcome} | {link}{soak} | {result} |"


def _when() -> str:
    command = shlex.join(["pytest", *sys.argv[1:]])
    commit = _git("rev-parse", "--short", "HEAD")
    changed = " with changes" if _git("status", "--porcelain", "-uno") else ""
    return (
        f"Written on {datetime.date.today()} at commit {commit}{changed}, "
        f"Python {platform.python_version()}, by\n\n    {command}\n\n"
    )


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    return done.stdout.strip()
