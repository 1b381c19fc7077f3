"""What the documentation says can be typed can be typed; test_docs_run.py types it."""

import argparse
import re

import documented
import pytest
from experiments.relabelling import __main__ as relabelling

from benchmarks import __main__ as benchmark
from benchmarks import case
from benchmarks.cases import CASES
from hypelora_jax import cli
from hypelora_jax.commands.shared import names
from hypelora_jax.config.loading import load_settings

ROOT = documented.ROOT
LINES = documented.lines()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))


def parse(argv: list[str]) -> None:
    """Through the real parser and the real configs; a mistake is a UserError."""
    rest, overrides = cli._split(argv)
    args = vars(cli.parser(rest).parse_args(rest))
    if args.get("config"):
        names.check(load_settings(args["config"], overrides))
    else:
        assert not overrides, f"{overrides} without --config"


def flags_of(command: str) -> set[str]:
    """Names of a command's flags, without dashes."""
    parser = argparse.ArgumentParser(add_help=False)
    cli.COMMANDS[command].add_flags(parser)
    return {text[2:] for action in parser._actions for text in action.option_strings}


def check_make(argv: list[str]) -> None:
    variables = [word for word in argv if "=" in word]
    wrong = set(argv) - set(variables) - TARGETS
    assert not wrong, f"make has no {wrong}"
    for word in variables:
        assert re.search(rf"^{word.split('=')[0]} \?=", MAKEFILE, re.M), word


def check_module(argv: list[str]) -> None:
    if argv[0] == "experiments.relabelling":
        return relabelling.parser().parse_args(argv[1:])
    assert argv[0] == "benchmarks", f"python -m {argv[0]}"
    args = benchmark.parser().parse_args(argv[1:])
    case.chosen(CASES, args.only, case.Options(glue="DIR", baseline="DIR"))


def check_script(argv: list[str]) -> None:
    if argv[0] == "-m":
        return check_module(argv[1:])
    script = ROOT / argv[0]
    assert script.is_file(), f"no file {argv[0]}"
    assert "--" not in argv or argv[0].startswith("experiments/launch/")
    own, _, trains = " ".join(argv[1:]).partition("-- ")
    if argv[0] == "experiments/train.py":
        own, trains = "", re.sub(r" ?--distributed=\S+", "", own)
    if trains:
        parse(["train", *trains.split()])
    for name in re.findall(r"--([a-z_]+)=", own):
        assert f'"--{name}"' in script.read_text(), f"{argv[0]} has no flag --{name}"


def check(line: documented.Line) -> None:
    """Refuses what could not be typed, without running it."""
    if line.word == "hypelora":
        parse(line.argv[1:])
    elif line.word == "make":
        check_make(line.argv[1:])
    elif line.word == "python":
        check_script(line.argv[1:])
    else:
        for word in line.argv[1:]:
            path = "/" in word and not word.startswith("-")
            assert not path or (ROOT / word).exists(), word


def test_every_line_can_be_typed(monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = []
    for line in LINES:
        try:
            check(line)
        except (Exception, SystemExit) as error:
            wrong.append(f"{line.page}: {line.text}: {error}")
    assert not wrong, "\n".join(wrong)
    words = {line.word for line in LINES}
    assert words == set(documented.WORDS), "lines were found"
    assert len(LINES) > 40


@pytest.mark.parametrize(
    "text",
    [
        "hypelora trian --workdir=x",
        "hypelora train --config=smoke --workdir=x --config.optim.lrr=1",
        "hypelora train --config=glue:task=colla --workdir=x --config.loss.name=no",
        "hypelora report --workdirs=x",
        "make demos",
        "make test PYTHN=python3.12",
        "python experiments/no_such.py",
        "python experiments/demo.py --work=x",
        "python experiments/train.py --config=smoke --workdir=x --config.no=1",
        "pytest tests/no_such.py",
    ],
)
def test_a_wrong_line_is_found(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, AssertionError)):
        check(documented.Line("", text))


def test_lines_are_taken_out_whole():
    page = (
        "text `make x` more\n\n    make smoke      says make\n"
        "    hypelora metrics  --predictions=FILE \\\n"
        "                      [--replicas=1000]      intervals\n"
        '    echo \'{"text": "a b"}\' | hypelora predict --workdir=DIR\n'
        "    mpirun -n 2 python experiments/train.py --workdir=x\n\n"
        "```text\nmake demo  # long\nno command\n```\n"
    )
    found = [documented._line("", text) for text in documented._commands(page)]
    assert [(line.text, line.stdin) for line in found] == [
        ("make demo", ""),
        ("make smoke", ""),
        ("hypelora metrics --predictions=FILE --replicas=1000", ""),
        ("hypelora predict --workdir=DIR", '{"text": "a b"}\n'),
        ("python experiments/train.py --workdir=x", ""),
    ]


def test_commands_in_running_text_exist():
    for page, text in documented.inline():
        word, name, *_ = text.split()
        if word == "make":
            check_make(text.split()[1:])
        elif word == "python":
            check_script(text.split()[1:])
        elif name not in ("COMMAND", "VERSION"):
            assert name in cli.COMMANDS, f"{page}: {text}"
            known = {"config", *flags_of(name)}
            used = re.findall(r"--([a-z_-]+)", text)
            assert set(used) <= known, f"{page}: {text}"
