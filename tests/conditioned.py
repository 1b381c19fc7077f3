"""Corpora whose label hangs on a vector that comes with each text."""

import json
from pathlib import Path

import numpy as np

WIDTH = 6
SIZES = {"train": 640, "calibration": 100, "validation": 200}
WORDS = ("good", "bad")


def vectors(n: int, seed: int) -> np.ndarray:
    """(n, C) of norm about 2.4; the sign of the first entry is what labels hang on."""
    x = np.random.default_rng(seed).normal(size=(n, WIDTH))
    x[:, 0] = np.sign(x[:, 0]) * (0.5 + np.abs(x[:, 0]))  # no vector between the two
    return x.round(4)


def rows(kind: str, n: int, seed: int) -> list[dict]:
    """Texts, vectors and labels.

    kind: "vector" (the vector alone decides, the text is noise), "xor" (the text's
    word, turned round where the vector's sign is negative), "text" (the word alone).
    """
    rng = np.random.default_rng(seed + 1000)
    word = rng.integers(0, 2, n)
    x = vectors(n, seed)
    sign = (x[:, 0] < 0).astype(int)
    label = {"vector": sign, "xor": word ^ sign, "text": word}[kind]
    return [
        {
            "text": f"{WORDS[w]} {'abcdefgh'[rng.integers(8)]}",
            "condition": v.tolist(),
            "label": f"class_{y}",
        }
        for w, v, y in zip(word, x, label, strict=True)
    ]


def shuffled(table: list[dict], seed: int = 5) -> list[dict]:
    """The same rows, each with the vector of another."""
    order = np.random.default_rng(seed).permutation(len(table))
    return [
        row | {"condition": table[i]["condition"]}
        for row, i in zip(table, order, strict=True)
    ]


def write(folder: Path, kind: str, shuffle: bool = False) -> tuple[str, ...]:
    """The files of a corpus; the flags that train on them."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--config=files", "--config.model.path=random:tiny"]
    for seed, (split, n) in enumerate(SIZES.items()):
        table = rows(kind, n, seed)
        if shuffle:
            table = shuffled(table)
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        flags.append(f"--config.data.{split}={path}")
    return tuple(flags)


GIVEN = (
    "--config.condition.source=given",
    "--config.data.condition=condition",
)


def npz(path, ids=("low", "high"), seed=0):
    """Two vectors that differ in the sign that labels hang on."""
    vectors = np.random.default_rng(seed).normal(size=(len(ids), WIDTH))
    vectors[:, 0] = np.resize([-1.5, 1.5], len(ids))
    np.savez(path, ids=np.array(ids), vectors=vectors)
    return path


def with_ids(folder):
    """A corpus in CSV whose column `domain` names a vector of a file."""
    rng, flags = np.random.default_rng(0), []
    for split, n in {"train": 320, "calibration": 100, "validation": 100}.items():
        names = rng.choice(["low", "high"], n)
        lines = [f"word {rng.integers(9)},{name},is_{name}" for name in names]
        path = folder / f"{split}.csv"
        path.write_text("\n".join(["text,domain,label", *lines]) + "\n")
        flags.append(f"--config.data.{split}={path}")
    npz(folder / "domains.npz")
    return (
        "--config=files",
        "--config.model.path=random:tiny",
        *flags,
        "--config.condition.source=given",
        "--config.data.condition=domain",
        f"--config.condition.file={folder / 'domains.npz'}",
    )
