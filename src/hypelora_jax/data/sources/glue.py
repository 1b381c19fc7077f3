"""Reads GLUE from a folder in its official TSV layout, or through the TFDS builder."""

import contextlib
import sys
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import files
from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data.formats.cells import listed, shown
from hypelora_jax.data.sources.bad_rows import BadRows
from hypelora_jax.data.tables import Splits, Table
from hypelora_jax.data.tasks import GlueTask, glue_task
from hypelora_jax.errors import UserError


def load_dir(config: DataConfig) -> Splits:
    """Load all splits of a GLUE task whose TSV files are in `config.dir`.

    Raises:
      UserError: the folder or a column is missing, or a label is bad.
    """
    glue = glue_task(config.task)
    folder = epath.Path(config.dir) / glue.folder
    if not config.dir or not folder.is_dir():
        raise UserError(
            f"config.data.dir is {config.dir!r}, which has no folder {glue.folder}; "
            f"expected GLUE's layout ({glue.folder}/{glue.splits['validation'][0]}, "
            "...)"
        )
    splits, bad = Splits(), BadRows(config.on_bad_row)
    for split, (name, _) in glue.splits.items():
        if (folder / name).exists():
            splits[split] = read_tsv(folder / name, glue, split, bad)
    bad.warn()
    return splits


def read_tsv(path: epath.Path, glue: GlueTask, split: str, bad: BadRows) -> Table:
    """Read a GLUE TSV file, where quotes are plain text; ids are row numbers from 0.

    Rows with too few columns, which QQP has, are left out as in TFDS and on the hub,
    and counted in one warning. One text of a pair may be empty, as some are in QQP.
    """
    text = files.read_text(path, "convert the file (iconv -t utf-8)")
    if not text.strip():
        raise UserError(f"{path} is empty; expected a data file with examples")
    lines = [x.removesuffix("\r") for x in text.split("\n")]
    if not lines[-1]:
        lines.pop()
    bare = bool(glue.header) and split != "test"
    header = list(glue.header) if bare else lines[0].split("\t")
    columns = [_column(path, header, name) for name in glue.columns]
    hidden = split.startswith("test")  # GLUE keeps the labels of its test sets secret
    label_at = columns[0] if hidden else _column(path, header, glue.label)
    width = 1 + max(*columns, label_at)
    ids, texts, labels, ragged = [], [], [], 0
    for n, line in enumerate(lines[0 if bare else 1 :]):
        cells = line.split("\t")
        if len(cells) < width:
            ragged += 1
            continue
        where = f"{path}:{n + (1 if bare else 2)}"
        both = [cells[i] for i in columns]
        if not any(x.strip() for x in both):
            bad.add(where, "the text is empty; expected a text")
            continue
        label = _no_label(glue) if hidden else _label(glue, cells[label_at])
        if label is None:
            bad.add(where, f"label {shown(cells[label_at])}; expected {_wanted(glue)}")
            continue
        ids.append(n)
        texts.append(both)
        labels.append(label)
    if ragged:
        logging.warning("%s: left out %d rows with too few columns", path, ragged)
    return _table(glue, ids, texts, labels, str(path))


def _column(path: epath.Path, header: list[str], name: str) -> int:
    if name not in header:
        raise UserError(
            f"{path} has no column {name!r}; it has {listed(header)}. Expected GLUE's "
            "official TSV layout"
        )
    return header.index(name)


def _no_label(glue: GlueTask) -> float:
    """Return the value of a missing label: -1 for classes, NaN for numbers."""
    return -1 if glue.task.labels else np.nan


def _label(glue: GlueTask, label: str) -> float | None:
    """Return the class id or score, or None if the label is neither."""
    names = glue.task.labels
    if label in names:
        return names.index(label)
    try:
        value = int(label) if names else float(label)
    except ValueError:
        return None
    good = 0 <= value < len(names) if names else np.isfinite(value)
    return value if good else None


def _wanted(glue: GlueTask) -> str:
    names = ", ".join(glue.task.labels)
    return f"one of {names}, or its id" if names else "a finite number"


def _table(
    glue: GlueTask,
    ids: list[int],
    texts: list[list[str]],
    labels: list[float],
    where: str,
) -> Table:
    if not ids:
        raise UserError(f"{where} has no examples; expected at least one")
    kind = np.int32 if glue.task.labels else np.float32
    return Table(
        np.asarray(ids, np.int64),
        [x[0] for x in texts],
        [x[1] for x in texts] if glue.task.pair else None,
        np.asarray(labels).astype(kind),
    )


def _builder(config: DataConfig) -> Any:
    # The import is local because it takes seconds and only this source needs it.
    from tensorflow_datasets.text import glue as tfds_glue

    folder = config.dir or str(files.root() / "tfds")
    name = glue_task(config.task).config
    return tfds_glue.Glue(config=name, data_dir=folder, file_format="array_record")


def prepare_tfds(config: DataConfig) -> Any:
    """Return TFDS's builder of a prepared GLUE task; download and prepare it if needed.

    The dataset's folder appears whole or not at all. TFDS shows progress bars.

    Raises:
      UserError: the download fails, or it is forbidden (`files.why_no_download`).
    """
    builder = _builder(config)
    if builder.info.splits:
        return builder
    files.check_download(f"glue/{config.task} is not in {builder.data_path}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            builder.download_and_prepare()
    except Exception as e:  # errors of TFDS have no other common base class
        why = " ".join(str(e).split())[:200]
        raise UserError(
            f"preparing glue/{config.task} failed ({type(e).__name__}: {why}); "
            "expected a download. Check the network, or use data.source=glue_dir"
        ) from e
    return builder


def load_tfds(config: DataConfig) -> Splits:
    """Load all splits of a task in order of `idx`, prepared first if it is not yet.

    Raises:
      UserError: the task is not prepared and cannot be.
    """
    glue, builder = glue_task(config.task), prepare_tfds(config)
    splits = Splits()
    for split, (_, name) in glue.splits.items():
        if name in builder.info.splits:
            splits[split] = _from_tfds(builder, glue, split, name)
    return splits


def _from_tfds(builder: Any, glue: GlueTask, split: str, name: str) -> Table:
    rows = sorted(builder.as_data_source(split=name), key=lambda row: int(row["idx"]))
    texts = [[row[f].decode("utf-8") for f in glue.features] for row in rows]
    # TFDS writes -1 in test splits, which would look like a score of STS-B
    hidden = split.startswith("test")
    labels = [_no_label(glue) if hidden else row["label"] for row in rows]
    return _table(glue, [int(row["idx"]) for row in rows], texts, labels, name)
