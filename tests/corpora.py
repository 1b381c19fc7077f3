"""Small corpora on disk, for what reads GLUE's own files."""

from pathlib import Path

import numpy as np

from hypelora_jax.data.tasks import GLUE


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


def tsv_rows(name, split, n):
    """Header (None for none) and rows of a file in GLUE's layout, unquoted quotes."""
    task = GLUE[name]
    if name == "cola" and split != "test":
        return None, [["gj04", str(i % 2), "", f'say "{i} again'] for i in range(n)]
    hidden = split.startswith("test")
    labels = task.task.labels or ("0.5", "3.25")
    if name in ("sst2", "mrpc", "qqp", "wnli"):  # these files hold ids
        labels = ("0", "1")
    header = ["index", *task.columns] + ([] if hidden else [task.label])
    rows = [
        [str(i), *(f"{c} {split} {i}" for c in task.columns)]
        + ([] if hidden else [labels[i % len(labels)]])
        for i in range(n)
    ]
    return header, rows


def write_glue(folder, name, n=40):
    task = GLUE[name]
    (folder / task.folder).mkdir(parents=True)
    for split, (file, _) in task.splits.items():
        header, rows = tsv_rows(name, split, n if split == "train" else 6)
        lines = ["\t".join(r) for r in ([header] if header else []) + rows]
        mark = "\ufeff" if name == "mrpc" else ""  # the official file has one
        text = mark + "\n".join(lines) + ("" if name == "cola" else "\n")
        (folder / task.folder / file).write_text(text, encoding="utf-8")


def tfds(monkeypatch, raw: Path) -> list:
    """Let TFDS's own builder find GLUE's files in `raw`; return what it downloads.

    An exception put in front of the list is raised by the next download.
    """
    import tensorflow_datasets as tfds  # takes seconds

    asked: list = []

    def download(self, url):
        asked.append(url)
        if isinstance(asked[0], BaseException):
            raise asked.pop(0)
        return str(raw)

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
    return asked
