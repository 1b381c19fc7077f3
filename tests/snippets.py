"""Code as the documentation writes it, put where its first line says it goes.

A block of Python begins with a comment that names a file of the repository:

    # src/hypelora_jax/hyper/shared.py
    # src/hypelora_jax/hyper/__init__.py, in CONDITIONERS

A block without a table is a new file, or is added to one that exists. A block with a
table is lines of that table. So tests run the text that readers copy.
"""

import ast
import importlib
import re
import sys
import types
from typing import Any, NamedTuple

import pytest
from documented import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PLACE = re.compile(r"# (?P<path>(?:src|tests)/[\w/]+\.py)(?:, in (?P<table>[A-Z]+))?\n")


class Snippet(NamedTuple):
    """A block of a page, and the place it goes to."""

    path: str  # of the file, from the root of the repository
    table: str  # name of the table the lines belong to; "" for the file itself
    code: str

    @property
    def module(self) -> str:
        """Name by which the file is imported."""
        below = self.path.removeprefix("src/").removeprefix("tests/")
        return below.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def of_page(page: str) -> list[Snippet]:
    """All blocks of a page that are Python; each has to say where it goes."""
    out = []
    for block in BLOCK.findall((ROOT / page).read_text()):
        place = PLACE.match(block)
        assert place, f"{page}: the first line names no file: {block.splitlines()[0]}"
        out.append(Snippet(place["path"], place["table"] or "", block[place.end() :]))
    assert out, f"{page} has no code"
    return out


def install(page: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Do what the blocks of a page say, until the patch ends; return what they define.

    The new names of a file that exists are added to it; nothing else in it changes.
    """
    made: dict[str, Any] = {}
    for snippet in of_page(page):
        module = _module(snippet, patch)
        space = {**vars(module), **made}
        if snippet.table:
            lines = eval(f"{{{snippet.code}}}", space)
            for key, value in lines.items():
                patch.setitem(getattr(module, snippet.table), key, value)
            continue
        exec(compile(snippet.code, snippet.path, "exec"), space)
        own = {name: space[name] for name in _defined(snippet.code)}
        for name, value in own.items():
            patch.setattr(module, name, value, raising=False)
        made |= own
    return made


def _module(snippet: Snippet, patch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module of a file, which is new if there is no such file."""
    file = ROOT / snippet.path
    if file.exists():
        return importlib.import_module(snippet.module)
    assert file.parent.is_dir(), f"{snippet.path}: there is no such folder"
    if snippet.module not in sys.modules:
        patch.setitem(sys.modules, snippet.module, types.ModuleType(snippet.module))
    return sys.modules[snippet.module]


def _defined(code: str) -> list[str]:
    """Names of the functions, classes and values that the code defines."""
    out = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            out.append(node.name)
        elif isinstance(node, ast.Assign):
            out += [
                target.id for target in node.targets if isinstance(target, ast.Name)
            ]
    return out
