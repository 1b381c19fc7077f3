"""Subjects of the benchmark, one file each, and the table of their rows."""

from benchmarks.case import Case
from benchmarks.cases import gemm, step

CASES: dict[str, Case] = {**step.CASES, **gemm.CASES}
