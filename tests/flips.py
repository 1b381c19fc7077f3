"""The flip problem: two tasks ask the same texts for a label and for its opposite."""

import json
from pathlib import Path

import numpy as np

from hypelora_jax import cli

DESCRIPTIONS = {
    "asks": ("Is it good?", "Say yes if it is good.", "good: yes or no"),
    "denies": ("Is it not good?", "Say yes unless it is good.", "bad: yes or no"),
}
SIZES = {"train": 256, "calibration": 100, "validation": 60, "test": 100}
FILLERS = ("a", "the", "one", "film", "song")
# Flags of a run that learns both from their descriptions, on random weights.
FLAGS = (
    "--config=smoke",
    "--config.data.source=tasks",
    "--config.data.max_length=32",
    "--config.condition.source=text",
    "--config.condition.encoder=random:tiny",
    "--config.condition.standardise=true",
    "--config.hyper.cond=layer_module",
    "--config.optim.num_epochs=14",
)


def write(folder: Path) -> str:
    """Write the set and its texts into a folder; return the file of the set."""
    rng = np.random.default_rng(0)
    for split, size in SIZES.items():
        good = rng.integers(2, size=size)
        words = rng.choice(FILLERS, (size, 2))
        rows = [
            {"text": f"{w[0]} {'good' if g else 'bad'} {w[1]}", "label": int(g)}
            for g, w in zip(good, words, strict=True)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    data = {"source": "files", **{split: f"{split}.jsonl" for split in SIZES}}
    tasks = []
    for name, texts in DESCRIPTIONS.items():
        yes = int(name == "asks")
        labels = {"no": 1 - yes, "yes": yes}
        one = {"name": name, "descriptions": texts, "data": data, "labels": labels}
        tasks.append(one)
    tasks[0]["negations"], tasks[1]["negations"] = (
        DESCRIPTIONS["denies"],
        DESCRIPTIONS["asks"],
    )
    path = folder / "set.json"
    path.write_text(json.dumps(tasks))
    return str(path)


def trained(folder: Path, *flags: str) -> Path:
    """Train a run of both tasks in a folder; return that of the run."""
    argv = ["train", *FLAGS, f"--config.tasks.file={write(folder)}", *flags]
    assert cli.main([*argv, f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"
