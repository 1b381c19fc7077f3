"""Most memory of a process that trains: ours against torch with peft.

Each side is a process of its own that imports its libraries, makes a model with random
weights and does three steps; `VmHWM` of /proc/self/status is read at the end.
"""

import functools
from collections.abc import Iterator

from benchmarks import ours, processes, torch_rival
from benchmarks.case import Case, Options
from benchmarks.cases.step import SHAPES, Shape
from benchmarks.programs.our_training import STEPS
from benchmarks.rows import Row, of_counts


def compared(shape: Shape, options: Options) -> Iterator[Row]:
    """Peak memory of both, in MiB; the smaller of torch's settings counts."""
    del options
    path, sizes = shape.model, (str(shape.rows), str(shape.tokens))
    done = processes.python("-m", "benchmarks.programs.our_training", path, *sizes)
    own = done.told()["peak_mib"]
    model = ours.ours(shape.model)
    more = {"rows": shape.rows, "tokens": shape.tokens, "steps": STEPS}
    theirs = {
        name: torch_rival.trained(model, name, **more).told()["peak_mib"]
        for name in torch_rival.ATTENTION
    }
    least = min(theirs.values())
    name = f"memory/{shape.name}"
    yield of_counts(name, "torch+peft", own, least, "MiB", settings=theirs)


CASES = {
    f"memory/{shape.name}": Case(functools.partial(compared, shape)) for shape in SHAPES
}
