"""Notebooks from their percent files, and the address of the repository into them.

    python notebooks/build.py

Writes notebooks/NAME.ipynb, without outputs, for each notebooks/src/NAME.py, and the
value `repository` of pyproject.toml into the sources (HYPELORA_REPO) and behind each
`<!-- colab: NAME -->` of the sources, README.md and docs/notebooks.md. The first code
cell, which installs, is that of quickstart.py in all of them. A test fails where a file
is not what this makes.
"""

import argparse
import re
import tomllib
from pathlib import Path

import jupytext

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "notebooks" / "src"
REPO = re.compile(r'^HYPELORA_REPO = ".*?"', re.M)
FIRST = re.compile(r"^# %%\nHYPELORA_REPO = .*?(?=^# %%)", re.M | re.S)
BADGE = re.compile(r"<!-- colab: (\w+) -->(?: \[!\[[^\]]*\]\([^)]*\)\]\([^)]*\))?")
GITHUB = "https://github.com/"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def repository() -> str:
    """Address of the repository, the one value in pyproject.toml."""
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return held["tool"]["hypelora"]["repository"]


def linked(text: str, repo: str, picture: str) -> str:
    """The text with the repository's address and badges that open notebooks from it.

    Colab opens what lies on GitHub: elsewhere there are no badges. `picture` is the
    badge's file, seen from the text's folder.
    """

    def badge(found: re.Match) -> str:
        comment = f"<!-- colab: {found[1]} -->"
        if not repo.startswith(GITHUB):
            return comment
        page = f"{repo.removeprefix(GITHUB)}/blob/main/notebooks/{found[1]}.ipynb"
        url = f"https://colab.research.google.com/github/{page}"
        return f"{comment} [![Open in Colab]({picture})]({url})"

    return BADGE.sub(badge, REPO.sub(f'HYPELORA_REPO = "{repo}"', text))


def notebook(source: str, name: str) -> str:
    """A percent file as the JSON of a notebook: the same source, the same bytes."""
    made = jupytext.reads(source, fmt="py:percent")
    made.metadata.clear()
    made.metadata["kernelspec"] = KERNEL
    made.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{name}-{number}"  # else drawn at random
    return jupytext.writes(made, fmt="ipynb").rstrip("\n") + "\n"


def outputs(repo: str) -> dict[Path, str]:
    """Text of every file that is made, by its path."""
    pages = {ROOT / "README.md": "docs/img/colab.svg"}
    pages[ROOT / "docs" / "notebooks.md"] = "img/colab.svg"
    sources = sorted(SOURCES.glob("*.py"))
    pages |= dict.fromkeys(sources, "../docs/img/colab.svg")
    out = {path: linked(path.read_text(), repo, img) for path, img in pages.items()}
    first = FIRST.search(out[SOURCES / "quickstart.py"])[0]
    for path in sources:
        out[path] = FIRST.sub(lambda _: first, out[path])
        out[SOURCES.parent / f"{path.stem}.ipynb"] = notebook(out[path], path.stem)
    return out


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for path, text in outputs(repository()).items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))
