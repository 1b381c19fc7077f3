"""Peft adapters on the tiny random model, and a set of tasks that names them."""

import functools
import json
from pathlib import Path

import flips
import jax
import numpy as np
from etils import epath

from hypelora_jax import families, trees
from hypelora_jax.adapters import sites as sites_lib
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.interop import base as bases
from hypelora_jax.interop import peft

LORA = LoraConfig(rank=2, alpha=4.0)
NAMES = ("one", "two", "three", "four", "new")  # the last one is held out
FLAGS = (
    *(flag for flag in flips.FLAGS if "num_epochs" not in flag),
    "--config.loss.objective=reconstruction",
    "--config.tasks.per_batch=4",
    "--config.hyper.widths=(64,)",
    "--config.tasks.steps=120",
    "--config.optim.num_epochs=2",
)


@functools.cache
def head_of(number: int) -> dict:
    """The head that adapters of this number have."""
    return bases.load(bases.resolve("random:tiny"), 2, jax.random.key(number))["head"]


def adapter(
    folder: Path, seed: int, head: int = 0, lora: LoraConfig = LORA, by: float = 0.3
) -> Path:
    """Write an adapter whose A all seeds share; heads of equal numbers are equal."""
    base = bases.resolve("random:tiny")
    family, layers = families.of(base.config), base.config.layers
    dims = family.sites(base.config)
    sites = sites_lib.sites(lora, dims, layers, family.names.modules)
    one, own = np.random.default_rng(0), np.random.default_rng(seed)
    factors = {}
    for m, site in sites.items():
        lead = len(site.layers)
        a = one.normal(size=(lead, site.d_in, lora.rank))
        b = own.normal(size=(lead, lora.rank, site.d_out))
        factors[m] = {"a": np.float32(by * a), "b": np.float32(by * b)}
    tensors, ranks = peft.to_peft(base.config, [(sites, factors)], head_of(head))
    fields = peft.make_config(lora, sites, ranks, base.config, "random:tiny")
    peft.write(epath.Path(folder), fields, tensors)
    return folder


def write(folder: Path, heads: bool = False) -> str:
    """Write the set, its texts and its adapters; return the file of the set."""
    flips.write(folder)
    data = {"source": "files", **{split: f"{split}.jsonl" for split in flips.SIZES}}
    tasks = []
    for i, name in enumerate(NAMES):
        adapter(folder / name, seed=i, head=i * heads)
        one = {"name": name, "description": f"Is it {name}?", "data": data}
        one |= {"adapter": name, "labels": {"no": 0, "yes": 1}}
        tasks.append(one)
    tasks[-1]["role"] = "held_out"
    path = folder / "given.json"
    path.write_text(json.dumps(tasks))
    return str(path)


def leaves(tree: dict) -> dict:
    return {path: np.asarray(x) for path, x in trees.flatten(tree).items()}
