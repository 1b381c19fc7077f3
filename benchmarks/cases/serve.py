"""Questions a second of `hypelora serve` at 64 clients.

The rivals are transformers' forward pass behind the same HTTP framework, batching and
tokenizer, and our own service with batching off. The services take turns, and every
answer is compared with that of `hypelora predict`. The run is MiniLM with LoRA.
"""

import asyncio
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

import hypelora_jax
from benchmarks import load, processes, timing
from benchmarks.case import Case, Options
from benchmarks.rows import Mismatch, Row

CLIENTS, TEXTS, ROUNDS = 64, 500, 6
TOLERANCE = 1e-4  # of a probability
TRAIN = (
    *("train", "--config=smoke:method=lora", "--config.model.path=minilm"),
    *("--config.data.num_examples=96", "--config.data.max_length=64"),
    *("--config.optim.num_epochs=1", "--config.optim.batch_size=16"),
)
OURS = ("hypelora_jax.cli", "serve", "--port=0", "--rate=0")
COMMANDS = {
    "ours": OURS,
    "transformers": ("benchmarks.programs.torch_service",),
    "unbatched": (*OURS, "--max_batch=1"),
}
Tallies = dict[str, list[tuple[load.Tally, float]]]


def questions(workdir: str) -> list[load.Question]:
    """Requests with one text each, and the answers of `predict`."""
    texts = load.drawn(TEXTS)
    answers = hypelora_jax.load(workdir).predict(texts)
    bodies = [load.request(json.dumps({"text": text})) for text in texts]
    return list(zip(bodies, answers, strict=True))


def in_turns(
    ports: Mapping[str, int], asked: Sequence[load.Question], seconds: float
) -> Tallies:
    """Ask each service for an equal part of the time, in turns.

    Raises:
      Mismatch: an answer is missing or differs from that of `predict`.
    """
    out: Tallies = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            part = seconds / ROUNDS / len(ports)
            tally, took = asyncio.run(load.load(port, asked, CLIENTS, part))
            if tally.errors:
                raise Mismatch(f"{name} did not answer: {tally.errors[0]}")
            if max(tally.off) > TOLERANCE:
                off = max(tally.off)
                raise Mismatch(f"an answer of {name} is {off:.2g} from that of predict")
            out[name].append((tally, took))
    return out


def against(name: str, rival: str, options: Options) -> Iterator[Row]:
    """Rows of the rate and of the slowest hundredth, for two services."""
    both = ("ours", rival)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        workdir = f"{folder}/run"
        processes.python("-m", "hypelora_jax.cli", *TRAIN, f"--workdir={workdir}")
        ports, metrics = {}, {}
        for one in both:
            command = [sys.executable, "-m", *COMMANDS[one], f"--workdir={workdir}"]
            made = stack.enter_context(load.service(command))
            ports[one], metrics[one] = made
        tallies = in_turns(ports, questions(workdir), max(options.seconds, 24))
    yield _rates(name, rival, tallies, metrics["ours"])
    yield _slowest(f"{name}_p99", rival, tallies)


def _rates(name: str, rival: str, found: Tallies, metrics: dict[str, Any]) -> Row:
    rates = {n: [len(t.seconds) / took for t, took in x] for n, x in found.items()}
    ratio = timing.ratio(rates["ours"], rates[rival])
    notes = {
        "mean_batch": metrics["hypelora_batch_size_mean"],
        "compiled": metrics["hypelora_programs_total"],
        "largest_difference": max(max(t.off) for x in found.values() for t, _ in x),
    }
    middle = [float(np.median(rates[n])) for n in ("ours", rival)]
    return Row(name, rival, *ratio, middle[0], middle[1], "questions/s", notes)


def _slowest(name: str, rival: str, found: Tallies) -> Row:
    tails = {
        n: [1000 * float(np.quantile(t.seconds, 0.99)) for t, _ in x]
        for n, x in found.items()
    }
    ratio = timing.ratio(tails[rival], tails["ours"])
    middle = [float(np.median(tails[n])) for n in ("ours", rival)]
    return Row(name, rival, *ratio, middle[0], middle[1], "ms")


CASES = {
    "serve/64": Case(functools.partial(against, "serve/64", "transformers")),
    "serve/batching": Case(functools.partial(against, "serve/batching", "unbatched")),
}
