"""Subjects of the benchmark, one file each, and the table of their rows."""

from benchmarks.case import Case
from benchmarks.cases import (
    conditions,
    descriptions,
    device,
    epoch,
    gemm,
    growth,
    many,
    memory,
    metrics,
    padding,
    serve,
    start,
    step,
)

_SUBJECTS = (step, gemm, epoch, start, padding, many, serve, metrics, conditions)
CASES: dict[str, Case] = {
    name: case
    for own in (*_SUBJECTS, descriptions, memory, growth, device)
    for name, case in own.CASES.items()
}
