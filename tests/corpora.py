"""Small corpora on disk, for what reads GLUE's own files."""

from pathlib import Path

import numpy as np


def glue(folder: Path) -> Path:
    """The folder with a small CoLA, SST-2, MRPC and RTE in GLUE's own layout."""
    for name in ("CoLA", "SST-2", "MRPC", "RTE"):
        (folder / name).mkdir(parents=True)
    words = np.random.default_rng(0).choice(["go", "and", "the", "cat"], (232, 5))
    texts = [" ".join(line) for line in words]
    rows = [f"x\t{i % 2}\t\t{text}" for i, text in enumerate(texts)]
    _write(folder / "CoLA", "train.tsv", "dev.tsv", None, rows)
    rows = [f"{text}\t{i % 2}" for i, text in enumerate(texts)]
    _write(folder / "SST-2", "train.tsv", "dev.tsv", "sentence\tlabel", rows)
    rows = [f"{i % 2}\t1\t2\t{text}\t{text}" for i, text in enumerate(texts)]
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    _write(folder / "MRPC", "train.tsv", "dev.tsv", head, rows)
    names = ("entailment", "not_entailment")
    rows = [f"{i}\t{text}\t{text}\t{names[i % 2]}" for i, text in enumerate(texts)]
    head = "index\tsentence1\tsentence2\tlabel"
    _write(folder / "RTE", "train.tsv", "dev.tsv", head, rows)
    return folder


def _write(folder: Path, train: str, dev: str, head: str | None, rows: list) -> None:
    head = [head] if head else []
    (folder / train).write_text("\n".join([*head, *rows[:192]]))
    (folder / dev).write_text("\n".join([*head, *rows[192:]]))
