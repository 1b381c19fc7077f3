"""An epoch of CoLA with MiniLM: `hypelora train` against a loop with torch and peft.

Both are whole commands: imports, tokenising, an epoch of LoRA steps, and evaluation of
every labelled split. Ours takes its compiled programs from the cache, except in
`epoch/cola_cold`. The rivals pad each batch to its longest text, or, as the reference
does, to 512 tokens. Of that one only 20 steps are run, and multiplied.
"""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import ours, processes, timing, torch_rival
from benchmarks.case import Case, Options
from benchmarks.rows import Row
from hypelora_jax.config.loading import load_settings
from hypelora_jax.interop import base as bases
from hypelora_jax.train.session import load_corpus

ROUNDS = 3
FIXED, FIXED_STEPS = 512, 20
BATCH = 32
CONFIG = "glue:task=cola,method=lora"


def overrides(glue: str) -> list[str]:
    """Overrides of the config in our command."""
    return [
        *("--config.data.source=glue_dir", f"--config.data.dir={glue}"),
        *("--config.optim.num_epochs=1", f"--config.optim.batch_size={BATCH}"),
    ]


def command(glue: str, workdir: str) -> list[str]:
    """Our command, after Python."""
    train = ("-m", "hypelora_jax.cli", "train", f"--config={CONFIG}")
    return [*train, *overrides(glue), f"--workdir={workdir}"]


@functools.cache
def texts(glue: str) -> dict[str, list]:
    """The splits of our command that have labels, as lists of [text, label]."""
    corpus = load_corpus(load_settings(CONFIG, overrides(glue)))
    return {
        name: [[text, int(y)] for text, y in zip(one.text, one.label, strict=True)]
        for name, one in corpus.splits.items()
        if min(one.label) >= 0
    }


def theirs(glue: str, attention: str, pad: Any, steps: int) -> processes.Done:
    """Train with torch; `steps` is 0 for the whole epoch."""
    folder: Any = bases.resolve("minilm").folder  # not None, as for random weights
    splits = dict(texts(glue))
    train = splits.pop("train")
    return torch_rival.trained(
        ours.ours("minilm"),
        attention,
        weights=str(folder / "model.safetensors"),
        tokenizer=str(folder / "tokenizer.json"),
        train=train,
        splits={} if steps else splits,
        max_length=128,
        batch_size=BATCH,
        pad=pad,
        steps=steps,
    )


def cola(options: Options) -> Iterator[Row]:
    """All four rows, from one cold run of ours and then three rounds."""
    glue = str(Path(options.glue).absolute())
    fastest = _fastest(glue)
    with tempfile.TemporaryDirectory() as folder:
        env = processes.environment(HYPELORA_CACHE=f"{folder}/cache")

        def run(number: int) -> processes.Done:
            line = command(glue, f"{folder}/run{number}")
            return processes.python(*line, env=env)

        cold = run(0)
        pairs = [
            (run(i + 1), theirs(glue, fastest, "longest", 0)) for i in range(ROUNDS)
        ]
    warm, dynamic = ([x.seconds for x in side] for side in zip(*pairs, strict=True))
    cpu = timing.ratio([b.cpu for _, b in pairs], [a.cpu for a, _ in pairs])
    fixed = _fixed(glue, fastest)
    yield _row("epoch/cola", "torch+peft", warm, dynamic, cpu_ratio=cpu.ratio)
    notes = {"steps": FIXED_STEPS, "extrapolated": True}
    yield _row("epoch/cola", "torch+peft, 512", warm, [fixed] * ROUNDS, **notes)
    yield _row("epoch/cola_cold", "torch+peft", [cold.seconds] * ROUNDS, dynamic)


def _fastest(glue: str) -> str:
    """Implementation of attention with the faster steps; 20 of each are timed."""
    found = {}
    for name in torch_rival.ATTENTION:
        seconds = theirs(glue, name, "longest", 20).told()["seconds"]
        found[name] = sorted(seconds)[len(seconds) // 2]
    return min(found, key=found.__getitem__)


def _fixed(glue: str, attention: str) -> float:
    """Seconds of the steps of an epoch, and of evaluation, padded to 512 tokens.

    An evaluated batch counts a third of a step: it has no backward pass.
    """
    told = theirs(glue, attention, FIXED, FIXED_STEPS).told()["seconds"]
    step = sorted(told)[len(told) // 2]
    counts = {name: -(-len(rows) // BATCH) for name, rows in texts(glue).items()}
    return step * (counts.pop("train") + sum(counts.values()) / 3)


def _row(
    name: str, rival: str, own: list[float], their: list[float], **notes: Any
) -> Row:
    found = timing.ratio(their, own)
    middle = [sorted(x)[len(x) // 2] for x in (own, their)]
    return Row(
        name, rival, *found, middle[0], middle[1], "s", {"rounds": ROUNDS} | notes
    )


CASES = {"epoch/cola": Case(cola, "glue")}
