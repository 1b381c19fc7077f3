"""A compiled program read from its text: what it moves, loops counted.

XLA's own cost analysis counts the body of a loop once; a scanned encoder runs it once a
layer. Here a computation counts as often as it runs.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}  # the rest by its name
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?(\S+) = ")
_CALLED = re.compile(r"\b(calls|body|branch_computations|called_computations)=")
# Nothing is read or written by these: they name, bundle or wait.
_FREE = set(
    "parameter constant get-tuple-element tuple bitcast while conditional call "
    "after-all partition-id replica-id opt-barrier domain add-dependency".split()
)


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
    inside: str  # what the parentheses hold: operands, a literal, a number
    rest: str  # attributes
    root: bool


Program = dict[str, dict[str, Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """(instructions by computation, name of the entry) of a compiled module's text."""
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


def _instruction(match: re.Match, text: str) -> Instruction:
    """An instruction from what stands right of `name = `."""
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
    """Index after the parenthesis that closes the one `text` starts with."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def _arrays(kind: str) -> tuple[Array, ...]:
    out = []
    for name, dims, layout in _ARRAY.findall(kind):
        count = 1
        for dim in re.findall(r"\d+", dims):
            count *= int(dim)
        bits = _BITS.get(name) if name in _BITS else int(re.search(r"\d+", name)[0])
        out.append(Array(-(-count * bits // 8), "S(" not in layout))
    return tuple(out)


def _nbytes(arrays: tuple[Array, ...], hbm_only: bool) -> int:
    return sum(a.nbytes for a in arrays if a.in_hbm or not hbm_only)


def trips(program: Program, loop: Instruction) -> int:
    """How often a loop runs: XLA's own count, else the bound its condition tests."""
    if known := re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([^\s,]+)", loop.rest)[1]
    reached = [condition, *(c for c, _ in _called(program, condition))]
    bounds = [
        int(i.inside)
        for name in reached
        for i in program[name].values()
        if i.opcode == "constant" and i.inside.isdigit()
    ]
    if len(set(bounds)) != 1:
        raise ValueError(f"loop {loop.name}: no single bound among {bounds}")
    return bounds[0]


def _called(program: Program, name: str) -> Iterator[tuple[str, Instruction]]:
    """Computations an instruction of `name` runs, reducers and comparators left out."""
    for instruction in program[name].values():
        if instruction.opcode in ("async-update", "async-done"):
            continue  # its start was counted
        for found in _CALLED.finditer(instruction.rest):
            rest = instruction.rest[found.end() :]
            listed = rest[1 : rest.index("}")] if rest.startswith("{") else rest
            names = listed.split(",") if rest.startswith("{") else [listed]
            for called in names:
                yield re.match(r"\s*%?([^\s,]+)", called)[1], instruction
        if instruction.opcode == "call":
            yield (
                re.search(r"to_apply=%?([^\s,]+)", instruction.rest)[1],
                instruction,
            )


def counts(program: Program, entry: str) -> dict[str, int]:
    """How often each reached computation runs in one run of the program."""
    out: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        out[name] += times
        for called, by in _called(program, name):
            visit(called, times * (trips(program, by) if by.opcode == "while" else 1))

    visit(entry, 1)
    return dict(out)


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes a device hands to collectives in one run, by kind; kinds not used absent.

    Of an all-gather what it ends with.
    """
    program, entry = parse(text)
    out: dict[str, int] = defaultdict(int)
    for name, times in counts(program, entry).items():
        for i in program[name].values():
            kind = i.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            nbytes = _given(program[name], i, hbm_only=False)
            if kind == "all-gather":  # a start's type names operands and results
                began = nbytes if i.opcode.endswith("-start") else 0
                nbytes = _nbytes(i.arrays, hbm_only=False) - began
            out[kind] += times * nbytes
    return dict(out)


def _given(body: dict[str, Instruction], of: Instruction, hbm_only: bool) -> int:
    return sum(_nbytes(body[o].arrays, hbm_only) for o in of.operands if o in body)


def traffic(text: str, hbm_only: bool = True, loops: bool = True) -> int:
    """Bytes one run reads and writes: operands and results of what is scheduled.

    Counted as XLA counts it: a fusion reads its operands and writes its results, a
    slice touches what it cuts. `hbm_only` leaves out what stays on the chip; without
    `loops` each body counts once, as in XLA's cost analysis.
    """
    program, entry = parse(text)
    total = 0
    for name, times in _scheduled(program, entry).items():
        moved = sum(_moved(program, name, i, hbm_only) for i in program[name].values())
        total += moved * (times if loops else 1)
    return total


def _scheduled(program: Program, entry: str) -> dict[str, int]:
    """`counts` without what runs inside a fusion: that stays in registers."""
    inside = {
        called
        for body in list(program)
        for called, by in _called(program, body)
        if by.opcode not in ("while", "conditional", "call")
    }
    return {n: c for n, c in counts(program, entry).items() if n not in inside}


def _moved(program: Program, name: str, i: Instruction, hbm_only: bool) -> int:
    """Bytes one instruction reads and writes."""
    body = program[name]
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0
    made = _nbytes(i.arrays, hbm_only)
    if i.opcode in ("copy-start", "slice-start"):  # (there, here, context)
        size = min(a.nbytes for a in i.arrays[:2])
        return size * sum(a.in_hbm or not hbm_only for a in i.arrays[:2])
    if i.opcode.endswith("-start"):  # its type names operands and results
        return made
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * made
    if i.opcode == "dynamic-update-slice":
        return 2 * _nbytes(body[i.operands[1]].arrays, hbm_only)
    if i.opcode != "fusion":
        return made + _given(body, i, hbm_only)
    return _fusion(program, body, i, hbm_only)


def _fusion(
    program: Program, body: dict[str, Instruction], of: Instruction, hbm_only: bool
) -> int:
    """Bytes a fusion moves: sliced operands and updated results only in part."""
    total = 0
    for index, operand in enumerate(of.operands):
        held = body[operand].arrays
        if any(a.in_hbm for a in held) or not hbm_only:
            total += min(_read(program, of, index), _nbytes(held, False))
    if not any(a.in_hbm for a in of.arrays) and hbm_only:
        return total
    inner = program[_fused(of)]
    whole = _nbytes(of.arrays, hbm_only)
    for i in inner.values():  # written in place: the result is the operand
        if i.opcode == "dynamic-update-slice":
            update = inner[i.operands[1]]
            whole -= _nbytes(i.arrays, False) - _nbytes(update.arrays, False)
    return total + max(whole, 0)


def _fused(of: Instruction) -> str:
    return re.search(r"calls=%?([^\s,]+)", of.rest)[1]


def _read(program: Program, fusion: Instruction, index: int) -> int:
    """Bytes a fusion reads of its operand number `index`."""
    inner = program[_fused(fusion)]
    for i in inner.values():
        if i.opcode == "parameter" and int(i.inside) == index:
            return _touched(program, inner, i)
    raise ValueError(f"fusion {fusion.name} has no parameter {index}")


def _touched(program: Program, inner: dict[str, Instruction], of: Instruction) -> int:
    """Bytes read of a value inside a fusion: of what is only sliced, the slices."""
    total = 0
    for user in inner.values():
        if of.name not in user.operands:
            continue
        first = user.operands[0] == of.name
        if first and user.opcode in ("dynamic-slice", "slice", "gather"):
            total += _nbytes(user.arrays, False)
        elif user.opcode == "bitcast":
            total += _touched(program, inner, user)
        elif user.opcode == "fusion":
            total += _read(program, user, user.operands.index(of.name))
        elif not (first and user.opcode == "dynamic-update-slice"):
            return _nbytes(of.arrays, False)
    return total
