"""A parser of XLA's compiled programs (HLO text), which also counts loop iterations."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}  # others: in the name
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?(\S+) = ")
_CALLED = re.compile(r"\b(calls|body|branch_computations|called_computations)=")


class Array(NamedTuple):
    """One array of an instruction's type."""

    nbytes: int
    in_hbm: bool  # False: on-chip memory, S(1) and up in TPU layouts


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str  # text in the parentheses: operands, a literal or a number
    rest: str  # attributes
    root: bool


Program = dict[str, dict[str, Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """Return (instructions by computation, name of the entry) of a module's text."""
    program: Program = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            entry = name if head[1] else entry
            program[name] = {}
        elif name and (match := _NAME.match(line)):
            made = _instruction(match, line[match.end() :])
            program[name][made.name] = made
    return program, entry


def _instruction(match: re.Match[str], text: str) -> Instruction:
    """Parse an instruction from the text after `name = `."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    opcode, _, _ = text.partition("(")
    text = text[len(opcode) :]
    end = _closing(text)
    inside, rest = text[1 : end - 1], text[end:]
    operands = tuple(re.findall(r"%([^\s,)]+)", inside))
    return Instruction(
        match[2], _arrays(kind), opcode, operands, inside, rest, bool(match[1])
    )


def _closing(text: str) -> int:
    """Return the index after the parenthesis that closes the first one of `text`."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"there is no closing parenthesis in {text[:80]!r}")


def _arrays(kind: str) -> tuple[Array, ...]:
    out = []
    for name, dims, layout in _ARRAY.findall(kind):
        count = 1
        for dim in re.findall(r"\d+", dims):
            count *= int(dim)
        bits = _BITS[name] if name in _BITS else int(_found(r"(\d+)", name))
        out.append(Array(-(-count * bits // 8), "S(" not in layout))
    return tuple(out)


def trips(program: Program, loop: Instruction) -> int:
    """Return how often a loop runs: XLA's count, or else the bound in its condition.

    Raises:
      ValueError: the condition has no single bound.
    """
    if known := re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = _found(r"condition=%?([^\s,]+)", loop.rest)
    reached = [condition, *(c for c, _ in called(program, condition))]
    bounds = [
        int(i.inside)
        for name in reached
        for i in program[name].values()
        if i.opcode == "constant" and i.inside.isdigit()
    ]
    if len(set(bounds)) != 1:
        raise ValueError(f"loop {loop.name} has no single bound among {bounds}")
    return bounds[0]


def called(program: Program, name: str) -> Iterator[tuple[str, Instruction]]:
    """Yield the computations that `name` runs, each with the instruction that runs it.

    Reducers and comparators are left out.
    """
    for instruction in program[name].values():
        if instruction.opcode in ("async-update", "async-done"):
            continue  # async-start was counted
        for found in _CALLED.finditer(instruction.rest):
            rest = instruction.rest[found.end() :]
            listed = rest[1 : rest.index("}")] if rest.startswith("{") else rest
            names = listed.split(",") if rest.startswith("{") else [listed]
            for one in names:
                yield _found(r"^\s*%?([^\s,]+)", one), instruction
        if instruction.opcode == "call":
            yield _found(r"to_apply=%?([^\s,]+)", instruction.rest), instruction


def fused(fusion: Instruction) -> str:
    """Return the name of the computation that a fusion runs."""
    return _found(r"calls=%?([^\s,]+)", fusion.rest)


def _found(pattern: str, text: str) -> str:
    """Return the first group of a pattern that the text must contain."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"there is no {pattern} in {text[:80]!r}")
    return match[1]


def counts(program: Program, entry: str) -> dict[str, int]:
    """Count how often each computation runs in one run of the program."""
    out: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        out[name] += times
        for inner, by in called(program, name):
            visit(inner, times * (trips(program, by) if by.opcode == "while" else 1))

    visit(entry, 1)
    return dict(out)
