"""Bytes that a compiled program moves: to and from memory, and between devices.

XLA's own cost analysis counts the body of a loop once, but a scanned encoder runs it
once for each layer. Here a computation counts as often as it runs.
"""

from collections import defaultdict

from hypelora_jax.plan.hlo import (
    Array,
    Instruction,
    Program,
    called,
    counts,
    fused,
    parse,
)

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# These instructions move no bytes: they only name, bundle or wait for values.
_FREE = set(
    "parameter constant get-tuple-element tuple bitcast while conditional call "
    "after-all partition-id replica-id opt-barrier domain add-dependency".split()
)


def collective_bytes(text: str) -> dict[str, int]:
    """Return the bytes that a device passes to collectives in one run, by kind.

    An all-gather counts the size of its result.
    """
    program, entry = parse(text)
    out: dict[str, int] = defaultdict(int)
    for name, times in counts(program, entry).items():
        for i in program[name].values():
            kind = i.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            nbytes = _given(program[name], i, hbm_only=False)
            if kind == "all-gather":  # the type of a start has operands and results
                began = nbytes if i.opcode.endswith("-start") else 0
                nbytes = _nbytes(i.arrays, hbm_only=False) - began
            out[kind] += times * nbytes
    return dict(out)


def _given(body: dict[str, Instruction], of: Instruction, hbm_only: bool) -> int:
    return sum(_nbytes(body[o].arrays, hbm_only) for o in of.operands if o in body)


def memory_bytes(text: str, hbm_only: bool = True, loops: bool = True) -> int:
    """Return the bytes that the scheduled instructions of one run read and write.

    They are counted as XLA counts them: a fusion reads its operands and writes its
    results, and a slice reads only its part.

    Args:
      text: HLO text of a compiled module.
      hbm_only: leave out arrays in on-chip memory.
      loops: count each iteration of a loop; False counts its body once, as XLA does.
    """
    program, entry = parse(text)
    total = 0
    for name, times in _scheduled(program, entry).items():
        moved = sum(_moved(program, name, i, hbm_only) for i in program[name].values())
        total += moved * (times if loops else 1)
    return total


def _scheduled(program: Program, entry: str) -> dict[str, int]:
    """Return `counts` without computations in fusions: their values use no memory."""
    inside = {
        one
        for body in list(program)
        for one, by in called(program, body)
        if by.opcode not in ("while", "conditional", "call")
    }
    return {n: c for n, c in counts(program, entry).items() if n not in inside}


def _moved(program: Program, name: str, i: Instruction, hbm_only: bool) -> int:
    """Return the bytes that one instruction reads and writes."""
    body = program[name]
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0
    made = _nbytes(i.arrays, hbm_only)
    if i.opcode in ("copy-start", "slice-start"):  # type: (array, array, context)
        size = min(a.nbytes for a in i.arrays[:2])
        return size * sum(a.in_hbm or not hbm_only for a in i.arrays[:2])
    if i.opcode.endswith("-start"):  # its type has operands and results
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
    """Return the bytes of a fusion; slices and updates of arrays count only in part."""
    total = 0
    for index, operand in enumerate(of.operands):
        arrays = body[operand].arrays
        if any(a.in_hbm for a in arrays) or not hbm_only:
            total += min(_read(program, of, index), _nbytes(arrays, False))
    if not any(a.in_hbm for a in of.arrays) and hbm_only:
        return total
    inner = program[fused(of)]
    whole = _nbytes(of.arrays, hbm_only)
    for i in inner.values():  # in place: only the update is written
        if i.opcode == "dynamic-update-slice":
            update = inner[i.operands[1]]
            whole -= _nbytes(i.arrays, False) - _nbytes(update.arrays, False)
    return total + max(whole, 0)


def _read(program: Program, fusion: Instruction, index: int) -> int:
    """Return the bytes that a fusion reads from operand number `index`."""
    inner = program[fused(fusion)]
    for i in inner.values():
        if i.opcode == "parameter" and int(i.inside) == index:
            return _touched(program, inner, i)
    raise ValueError(f"fusion {fusion.name} has no parameter {index}")


def _touched(program: Program, inner: dict[str, Instruction], of: Instruction) -> int:
    """Return the bytes that a fusion reads of a value inside it.

    If all users of the value slice it, only the slices count.
    """
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


def _nbytes(arrays: tuple[Array, ...], hbm_only: bool) -> int:
    return sum(a.nbytes for a in arrays if a.in_hbm or not hbm_only)
