"""Steps of torch in a process of its own, one for each line that it reads.

    python -m benchmarks.programs.torch_steps MODEL

Each line that it reads is JSON and has one line of JSON as its answer:

- `[]`: the names of the settings, after a check that all compute the same as ours;
- `[setting, rows, tokens, dropout, true]`: `fault` and `seconds` of a first step;
- `[setting, rows, tokens, dropout, false]`: `wall` and `cpu` seconds of a step.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import timing, torch_rival
from benchmarks.cases import step
from benchmarks.rows import Mismatch
from hypelora_jax.errors import UserError
from hypelora_jax.sharding import memory

Ways = dict[tuple, Callable[[], float]]


def answer(path: str, ways: Ways, asked: Sequence[Any]) -> dict[str, Any]:
    """Answer a line; `ways` keeps the steps of settings and shapes."""
    own, rivals = step.pair(path)
    if not asked:
        return {"settings": list(rivals)}
    *sizes, first = asked
    key = tuple(sizes)
    if key not in ways:
        ways[key] = torch_rival.step(own, rivals[key[0]], *key[1:])
    if first:
        fault, seconds = torch_rival.tried(ways[key])
        return {"fault": fault, "seconds": seconds}
    return timing.once(ways[key])._asdict()


def main(path: str) -> None:
    """Answer lines until there are no more."""
    memory.keep()  # as on our side
    ways: Ways = {}
    for line in sys.stdin:
        try:
            told = answer(path, ways, json.loads(line))
        except Mismatch as e:
            told = {"mismatch": str(e)}
        except UserError as e:
            told = {"error": str(e)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
