"""CoLA with MiniLM: learning rates first, then more seeds at each method's best rate.

Stage 1 is `sweep()`: 11 runs of 3 epochs with seed 0. Stage 2 is `more_seeds(best)`,
where `best` has, for each method, the entry of stage 1 with the lowest calibration NLL.
Both take about 50 minutes on 2 CPU cores; docs/results.md has the table.
"""

import itertools
from typing import Any

from hypelora_jax.configs.sweeps import Sweep, axis, product

CONFIG = "glue:task=cola,method={method}"  # every entry overrides this config
HYPER_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
LORA_RATES = (3e-4, 1e-3, 3e-3)


def sweep() -> Sweep:
    """Return stage 1: HypeLoRA, both initialisations, four rates; LoRA, three rates."""
    # The reference trains its trunk at the rate of everything else.
    reference = {"hyper.init": "reference", "optim.trunk_lr": 0.0}
    hyper = product(
        axis("method", ["hyper_mlp"]),
        [*axis("hyper.init", ["zero"]), reference],
        axis("optim.lr", HYPER_RATES),
    )
    lora = product(axis("method", ["lora"]), axis("optim.lr", LORA_RATES))
    return product(axis("seed", [0]), hyper + lora)


def more_seeds(best: Sweep, seeds: tuple[int, ...] = (1, 2)) -> Sweep:
    """Return the given entries of stage 1 with other seeds."""
    return [{**entry, "seed": seed} for entry in best for seed in seeds]


def best(found: list[dict]) -> dict[str, Any]:
    """Return the entry of the finished run with the lowest calibration NLL."""
    run = min(found, key=lambda run: run["nll"]["calibration"])
    names = dict.fromkeys(itertools.chain(*sweep()))
    return {name: run[name] for name in names if name in run}
