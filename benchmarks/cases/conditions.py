"""A training step of HypeLoRA with several conditions against one with a single one.

The base model has MiniLM's sizes and random weights, the method is hyper_mlp, and the
batch has 32 rows of 64 tokens, with dropout. Memory is the size of the temporaries that
XLA reports for the compiled step.
"""

import functools
from collections.abc import Iterator

import numpy as np

from benchmarks import ours, timing
from benchmarks.case import Case, Options
from benchmarks.rows import Row, of_times

MODEL, ROWS, TOKENS, WIDTH = "random:minilm", 32, 64, 128
# name -> (U, whether rows give the number of their condition)
KINDS = {
    "8_groups_of_4": (8, False),
    "8_in_any_order": (8, True),
    "32_of_32": (32, False),
}


def step(count: int, numbered: bool, model: str = MODEL) -> ours.Step:
    """Compile the step of a batch with this many conditions."""
    chance = np.random.default_rng(0)
    more = {"condition": chance.normal(size=(count, WIDTH)).astype(np.float32)}
    if numbered:
        order = chance.permutation(np.arange(ROWS) % count)
        more["row"] = order.astype(np.int32)
    given = (("source", "given"), ("width", WIDTH))
    made = ours.ours(model, "hyper_mlp", condition=given)
    return ours.step(made, ROWS, TOKENS, True, **more)


def several(kind: str, options: Options) -> Iterator[Row]:
    """Several conditions against one."""
    many, one = step(*KINDS[kind]), step(1, False)
    rivals = {"one condition": one.run}
    found = timing.compare(many.run, rivals, options.seconds)
    notes = {"temporaries_mib": many.mib, "of_one_mib": one.mib}
    yield of_times(f"conditions/{kind}", "one condition", found, **notes)


CASES = {f"conditions/{k}": Case(functools.partial(several, k)) for k in KINDS}
