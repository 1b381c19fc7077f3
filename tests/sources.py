"""Every source of conditions at a tiny size: settings, model and entries of a batch."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax.config.settings import Settings
from hypelora_jax.model import Model

TASKS, WIDTH, SENTENCES = 7, 5, 4
SINGLE = ("given", "task", "text", "instance", "set", "noise")
SUMS = ("text+noise", "task+set", "instance+text", "noise+task+text+set")
EVERY = (*SINGLE, *SUMS)
# Every source; of the sums the short run takes the one with the most in it.
CASES = [
    pytest.param(source, marks=pytest.mark.soak if source in SUMS[:-1] else [])
    for source in EVERY
]


def settings(source: str, method: str = "hyper_mlp", **sections) -> Settings:
    own = {"source": source, "width": WIDTH, "sentences": SENTENCES}
    condition = own | sections.pop("condition", {})
    return tiny.settings(method, condition=condition, **sections)


def model(config: Settings) -> Model:
    return tiny.model(config, tasks=TASKS)


def width(source: str) -> int:
    """C of the concatenated vectors."""
    hidden = {"instance": tiny.CONFIG.width}
    return sum(hidden.get(name, WIDTH) for name in source.split("+"))


def entries(source: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What a batch needs for so many conditions, all of them different."""
    rng, out = np.random.default_rng(seed), {}
    names = source.split("+")
    if {"given", "text"} & {*names}:
        out["condition"] = rng.normal(0.2, 2, (count, WIDTH)).astype(np.float32)
    if "task" in names:
        out["which"] = rng.permutation(np.arange(count) % TASKS).astype(np.int32)
    if "set" in names:
        shape = (count, SENTENCES, WIDTH)
        out["sentences"] = rng.normal(0.2, 2, shape).astype(np.float32)
    return out


def ready(config: Settings, shake: bool = True):
    """The model and its parameters; with `shake` no delta is zero."""
    built = model(config)
    params = tiny.params(config, built)
    own = {n: x for n, x in params.items() if n != "backbone"}
    return built, {**params, **tiny.shaken(own)} if shake else params


def on_device(batch: dict) -> dict:
    return {name: jnp.asarray(x) for name, x in batch.items()}
