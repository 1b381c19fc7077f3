"""What mkdocs fills in when it builds the site: tables made from the code itself.

A page holds a comment and the site shows a table in its place, so that no page can say
something else than the program does:

    <!-- flags: train -->      the flags of a command
    <!-- fields: optim -->     the fields of a section of the configs
    <!-- config: glue -->      the docstring of an installed config

Links to files outside docs/ are made links to the repository.
"""

import argparse
import dataclasses
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from hypelora_jax import cli
from hypelora_jax.commands.shared import names
from hypelora_jax.config import ranges, settings

ROOT = Path(__file__).parent.parent
COMMENT = re.compile(r"<!-- (flags|fields|config): (\S+) -->")
# The line of a field in sections.py: name, type, default, and the comment behind it.
FIELD = re.compile(r"^    (\w+): [^=]+= .*?(?:  # (.*))?$", re.M)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with its comments replaced; called by mkdocs."""
    made = COMMENT.sub(lambda found: MAKERS[found[1]](found[2]), markdown)
    return _outside(made, PurePosixPath(page.file.src_uri).parent)


def repository() -> str:
    """Address of the repository, the one value in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project["tool"]["hypelora"]["repository"]


def flags_of(command: str) -> str:
    """Markdown table of a command's flags."""
    parser = argparse.ArgumentParser(add_help=False)
    cli.COMMANDS[command].add_flags(parser)
    rows = [_flag(action) for action in parser._actions]
    if not rows:
        return "It has no flags of its own."
    return _table(("flag", "default", ""), rows)


def _flag(action: argparse.Action) -> tuple[str, str, str]:
    """Name, default and help of a flag, with its choices."""
    about = action.help or ""
    if action.choices:
        about = f"{about}: {', '.join(action.choices)}".removeprefix(": ")
    default = f"`{action.default}`" if action.default else ""
    name = action.option_strings[0]
    return f"`{name}`", "required" if action.required else default, about


def fields_of(section: str) -> str:
    """Markdown table of the fields of a section; `run` is the top level."""
    top = section == "run"
    kind = settings.Settings if top else settings.SECTIONS[section]
    about = {name: text for name, text in FIELD.findall(inspect.getsource(kind))}
    hints, rows = ranges.hints(kind), []
    for field in dataclasses.fields(kind):
        if field.name in settings.SECTIONS and top:
            continue
        path = field.name if top else f"{section}.{field.name}"
        text = about.get(field.name, "")
        if known := ranges.choices(hints[field.name]) or names.TABLES.get(path):
            listed = ", ".join(f"`{name}`" for name in known)
            text = f"{listed}; {text}" if text else listed
        rows.append((f"`{path}`", f"`{field.default!r}`", text))
    return f"{inspect.getdoc(kind)}\n\n{_table(('field', 'default', ''), rows)}"


def config_of(name: str) -> str:
    """Docstring of an installed config, with its commands over several lines again."""
    module = importlib.import_module(f"hypelora_jax.configs.{name}")
    return re.sub(r" {3,}(--config\.)", r" \\\n        \1", inspect.getdoc(module))


MAKERS = {"flags": flags_of, "fields": fields_of, "config": config_of}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _outside(markdown: str, folder: PurePosixPath) -> str:
    """Make links that leave docs/ lead to the repository, or text if it has no address.

    A site without an address cannot show the file, so the link would lead nowhere.
    """
    up = re.escape("../" * (len(folder.parts) + 1))
    link = re.compile(rf"\[([^\]]*)\]\({up}([^)\s]*)\)")
    to = f"[\\1]({repository()}/blob/main/\\2)" if repository() else "\\1"
    return link.sub(to, markdown)
