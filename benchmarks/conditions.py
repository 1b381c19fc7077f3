"""Compare memory and time of a training step with several conditions and with one.

    python benchmarks/conditions.py [--rounds=20] [--model=random:minilm]

The model has MiniLM's sizes and hyper_mlp, and a batch has 32 rows of 64 tokens, with
dropout as in training. The steps take turns in one process. A time ratio is the median
over the rounds of a step's time divided by the time of U = 1 in the same round. Memory
is the size of the temporaries that XLA reports for the compiled step. The last line is
one JSON object.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import MeshConfig, from_dict
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.families import preset
from hypelora_jax.interop import base as bases
from hypelora_jax.sharding.mesh import make_mesh, put_batch
from hypelora_jax.train import optimizer
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step

ROWS, TOKENS, WIDTH = 32, 64, 128
# name -> (U, whether rows give the number of their condition)
CASES = {
    "U = 1": (1, False),
    "8 groups of 4": (8, False),
    "8, in any order": (8, True),
    "32, each row its own": (32, False),
}


def batch_of(count, numbered, vocab):
    """Draw random tokens, labels and conditions."""
    chance = np.random.default_rng(0)
    out = {
        "ids": chance.integers(vocab // 2, vocab, (ROWS, TOKENS)).astype(np.int32),
        "mask": np.ones((ROWS, TOKENS), bool),
        "types": np.zeros((ROWS, TOKENS), np.int32),
        "label": chance.integers(0, 2, ROWS).astype(np.int32),
        "weight": np.ones(ROWS, np.float32),
        "condition": chance.normal(size=(count, WIDTH)).astype(np.float32),
    }
    if numbered:
        out["row"] = chance.permutation(np.arange(ROWS) % count).astype(np.int32)
    return out


def ready(name):
    """Return (step, function that makes a state, frozen, mesh) of a random preset."""
    given = {"source": "given", "width": WIDTH}
    settings = from_dict({"method": "hyper_mlp", "condition": given})
    config = preset(name.removeprefix("random:"))
    model = model_lib.build(settings, config, unnamed(2))
    base = bases.load(bases.Base(config, None, "", ""), 2, jax.random.key(0))
    params = model.init(jax.random.key(1), base)
    trainable, frozen = model.split(params)
    tx = optimizer.optimizer(settings.optim, 1000)
    alpha = optimizer.blend_alpha(settings.blend, 1000)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step = build_step(model, tx, alpha, mesh)
    return step, lambda: init_state(trainable, tx, jax.random.key(2)), frozen, mesh


def main():
    """Compile every case, then time them in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", default="random:minilm")
    args = parser.parse_args()
    step, fresh, frozen, mesh = ready(args.model)
    vocab = preset(args.model.removeprefix("random:")).vocab
    programs, states, batches, memory = {}, {}, {}, {}
    for name, (count, numbered) in CASES.items():
        batches[name] = put_batch(batch_of(count, numbered, vocab), mesh)
        states[name] = fresh()
        lowered = step.lower(states[name], frozen, batches[name])
        programs[name] = lowered.compile()
        memory[name] = programs[name].memory_analysis().temp_size_in_bytes
        states[name], _ = programs[name](states[name], frozen, batches[name])
    seconds = {name: [] for name in CASES}
    for _ in range(args.rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            # A step donates its state, so each case goes on with the new one.
            states[name], info = program(states[name], frozen, batches[name])
            jnp.asarray(info["loss"]).block_until_ready()
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(CASES))
    out = {}
    for name in CASES:
        pairs = zip(seconds[name], seconds[first], strict=True)
        out[name] = {
            "seconds": round(statistics.median(seconds[name]), 4),
            "time_ratio": round(statistics.median(a / b for a, b in pairs), 3),
            "temporaries_mib": round(memory[name] / 2**20, 1),
            "memory_ratio": round(memory[name] / memory[first], 3),
        }
        print(f"{name:24s}", out[name], flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
