"""Commands as the documentation writes them: taken out of README.md and docs/*.md.

A command line stands in a code block. A backslash joins it with the next line, three
blanks end it where no flag follows (what comes then explains), square brackets hold
what may be left out: it is left in. Dots for a config, or for all flags, are `smoke`.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WORDS = ("hypelora", "make", "python", "pytest")
DOTS = {"--config=...": "--config=smoke", " ... ": " --config=smoke --workdir=DIR "}
INLINE = re.compile(r"`((?:hypelora|make|python) [^`]+)`")


class Line(NamedTuple):
    """One command, and the page it was first seen on."""

    page: str
    text: str  # from its first word to its last argument
    stdin: str = ""  # what `echo` in front of it writes

    @property
    def argv(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def word(self) -> str:
        """hypelora, make, python or pytest."""
        return Path(self.argv[0]).name


def texts() -> dict[str, str]:
    """Name and text of each page; docs/configs.md shows the docstrings of configs."""
    own = (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    paths = [*own, *sorted(ROOT.glob("docs/**/*.md"))]
    out = {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    for path in sorted((ROOT / "configs").glob("*.py")):
        docstring = re.match(r'"""(.*?)"""', path.read_text(), re.S)
        out[str(path.relative_to(ROOT))] = docstring[1]
    return out


def lines() -> list[Line]:
    """Every different command of a code block, in the order of the pages."""
    found = {}
    for page, text in texts().items():
        for command in _commands(text):
            line = _line(page, command)
            found.setdefault((line.text, line.stdin), line)
    return list(found.values())


def inline() -> list[tuple[str, str]]:
    """(page, command) of each that stands in running text."""
    return [
        (page, " ".join(found.split()))
        for page, text in texts().items()
        for found in INLINE.findall(text)
    ]


def _commands(text: str) -> list[str]:
    out = []
    for block in _blocks(text):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            line = re.sub(r"(?<=\S)\s{3,}(?=[^\s-]).*", "", line.strip())
            line = re.sub(r"\s*# .*", "", line)
            for dots, meant in DOTS.items():
                line = line.replace(dots, meant)
            if _first(line) is not None:
                out.append(re.sub(r"[\[\]](?!\")", "", line))
    return out


def _blocks(text: str) -> list[str]:
    """Code blocks: between fences, or indented by four blanks."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [*fenced, *re.findall(r"(?:^ {4}.*\n)+", rest, re.M)]


def _line(page: str, text: str) -> Line:
    """The one command of WORDS in a pipe, and what `echo` in front of it says."""
    stages = text.split(" | ")
    number = next(i for i, stage in enumerate(stages) if _first(stage) is not None)
    before = stages[number - 1] if number else ""
    stdin = shlex.split(before)[1] + "\n" if before.startswith("echo ") else ""
    words = re.split(" +", stages[number].strip())
    return Line(page, " ".join(words[_first(stages[number]) :]), stdin)


def _first(text: str) -> int | None:
    """Which word of a command is one of WORDS."""
    found = [i for i, w in enumerate(text.split()) if Path(w).name in WORDS]
    return found[0] if found else None
