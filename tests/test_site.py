"""The documentation's pages hang together, and say what the program does."""

import argparse
import importlib.util
import re

import documented
import pytest

from hypelora_jax import cli
from hypelora_jax.commands.shared import names
from hypelora_jax.config import settings

ROOT = documented.ROOT


@pytest.fixture(scope="module")
def hooks():
    """The module docs/hooks.py, which fills in pages when the site is built."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r"[\w/]+\.md", nav)
    pages = [str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages), "mkdocs.yml: nav"


def test_links_lead_somewhere():
    for page, text in documented.texts().items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"https?://|#", target):
                path = (ROOT / page).parent / target.partition("#")[0]
                assert path.exists(), f"{page}: {target}"


def test_tables_of_commands_fields_and_configs_are_complete(hooks):
    commands = (ROOT / "docs" / "commands.md").read_text()
    asked = [name for kind, name in hooks.COMMENT.findall(commands) if kind == "flags"]
    assert asked == list(cli.COMMANDS)
    assert re.findall(r"^## (\w+)", commands, re.M) == asked
    found = hooks.COMMENT.findall((ROOT / "docs" / "configs.md").read_text())
    assert [n for k, n in found if k == "fields"] == ["run", *settings.SECTIONS]
    held = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert {name for kind, name in found if kind == "config"} == held


def test_the_tables_say_what_the_program_does(hooks):
    for name, command in cli.COMMANDS.items():
        made, parser = hooks.flags_of(name), argparse.ArgumentParser(add_help=False)
        command.add_flags(parser)
        for action in parser._actions:
            assert f"`{action.option_strings[0]}`" in made
    assert "| `--method` | `temperature` | temperature, vector" in hooks.flags_of(
        "calibrate"
    )
    assert "| `optim.lr` | `0.001` |" in hooks.fields_of("optim")
    assert "| `optim.schedule` | `'linear'` | `linear`, `cosine`, `constant`" in (
        hooks.fields_of("optim")
    )
    for path, table in names.TABLES.items():
        made = hooks.fields_of(path.partition(".")[0] if "." in path else "run")
        assert f"| `{path}` |" in made and f"`{[*table][-1]}`" in made


def test_every_field_says_what_it_is(hooks):
    for section in ("run", *settings.SECTIONS):
        rows = re.findall(r"^\| `(.*) \|$", hooks.fields_of(section), re.M)
        silent = [row for row in rows if row.endswith("| ")]
        assert not silent, "a comment behind the field in sections.py"


def test_links_out_of_docs_go_to_the_repository(hooks, monkeypatch):
    class Page:
        class file:
            src_uri = "extending/loss.md"

    text = "[a](../../tests/x.py) [b](../losses.md) [c](../../y.md)"
    address = "https://github.com/someone/else"
    monkeypatch.setattr(hooks, "repository", lambda: address)
    made = hooks.on_page_markdown(text, Page)
    here = f"{address}/blob/main"
    assert made == f"[a]({here}/tests/x.py) [b](../losses.md) [c]({here}/y.md)"
    monkeypatch.setattr(hooks, "repository", lambda: "")
    assert hooks.on_page_markdown(text, Page) == "a [b](../losses.md) c"


MEASURED = re.compile(r"^\|.*\|\s*\**[+-]?\d*\.\d{2,}\**( ±.*)?\s*\|", re.M)


def test_pages_with_measured_numbers_say_command_date_and_machine():
    """A table with a cell such as 0.837 or .943: what was run, when, and on what."""
    found = {
        name: text for name, text in documented.texts().items() if MEASURED.search(text)
    }
    assert {"README.md", "docs/results.md", "docs/calibration.md"} <= set(found)
    for name, text in found.items():
        if name.startswith("docs/") or name == "README.md":
            assert re.search(r"20\d\d-\d\d-\d\d", text), f"{name}: no date"
            assert "CPU core" in text, f"{name}: no machine"
            assert documented._commands(text) or documented.INLINE.search(text), name
