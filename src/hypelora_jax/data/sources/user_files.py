"""Reads the user's own files: finds columns by name, and the task by the labels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.sources.readers import READERS, BadRows, listed, shown
from hypelora_jax.data.tables import Splits, Table, hold_out
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError

# Names that are tried, in this order, if the config does not name the column.
COLUMNS = {
    "text": ("text", "sentence", "sentence1", "premise", "question", "question1"),
    "text_b": ("text_b", "sentence2", "hypothesis", "question2"),
    "label": ("label",),
}
# The tasks that labels may imply, before the names of classes are known.
CLASSES = Task("files", "classification", (), ("accuracy",), pair=False)
NUMBERS = Task("files", "regression", (), ("pearson", "spearman"), pair=False)
KINDS = {task.kind: task for task in (CLASSES, NUMBERS)}
Label = str | float | None  # as it is in the file; None if it is missing


class Raw(NamedTuple):
    """Rows of a file before labels have ids; `where` is "file:line" of each.

    `text_b` and `condition`, the vectors, are None if the file has no such column.
    """

    where: list[str]
    text: list[str]
    text_b: list[str] | None
    label: list[Label]
    condition: list[np.ndarray] | None = None


def load(
    config: DataConfig, seed: int, vectors: Vectors | None = None
) -> tuple[Task, Splits]:
    """Load the task, train, validation and, if given, calibration and test.

    If all labels are numbers and some are not whole, the task is a regression;
    `data.task` overrides this guess. Without a validation file a tenth of train is held
    out, and the log says so. `vectors` reads the column that `data.condition` names.

    Raises:
      UserError: a file, column, row or label cannot be used.
    """
    if config.task and config.task not in KINDS:
        raise UserError(
            f"config.data.task is {config.task!r}; expected one of "
            f"{', '.join(KINDS)}, or nothing to tell the task by the labels"
        )
    if not config.train:
        raise UserError(
            "config.data.train is empty; expected a file of examples (.csv, .tsv, "
            ".jsonl, .parquet). Set config.data.train=FILE"
        )
    names = ("train", "validation", "calibration", "test")
    paths = {n: getattr(config, n) for n in names if getattr(config, n)}
    bad = BadRows(config.on_bad_row)
    raws = {
        n: read_raw(epath.Path(p), config, n, bad, vectors) for n, p in paths.items()
    }
    task = _task(raws["train"], config)
    _check_pairs(task, raws, paths)
    splits = Splits({n: _table(task, raw, n, bad) for n, raw in raws.items()})
    bad.warn()
    for name, table in splits.items():
        if not len(table.ids):
            raise UserError(
                f"{paths[name]} has no usable rows; expected at least one example"
            )
    if "validation" not in splits:
        splits = _hold_out_validation(splits, seed)
    return task, splits


def _hold_out_validation(splits: Splits, seed: int) -> Splits:
    train = splits["train"]
    kept, validation = hold_out(train, max(round(len(train.ids) / 10), 1), seed, salt=1)
    logging.info(
        "no validation file, so %d of %d train examples are held out for validation",
        len(validation.ids),
        len(train.ids),
    )
    return Splits({**splits, "train": kept, "validation": validation})


def read_raw(
    path: epath.Path,
    config: DataConfig,
    split: str,
    bad: BadRows,
    vectors: Vectors | None = None,
) -> Raw:
    """Read one file: unchanged texts and labels, and vectors; bad rows go to `bad`.

    Raises:
      UserError: the suffix is unknown, the file is broken, or a column is missing.
    """
    if path.suffix.lower() not in READERS:
        raise UserError(
            f"{path} has suffix {path.suffix!r}; expected one of {', '.join(READERS)}"
        )
    header, rows = READERS[path.suffix.lower()](path, bad)
    text = _required(path, header, config, "text")
    find_b = _required if config.text_b else _column
    text_b = find_b(path, header, config, "text_b")
    find_label = _column if split == "test" else _required
    label = find_label(path, header, config, "label")
    columns = [c for c in (text, text_b) if c]
    condition = _required(path, header, config, "condition") if vectors else ""
    out = Raw([], [], [] if text_b else None, [], [] if vectors else None)
    for line, cells in rows:
        where = f"{path}:{line}"
        value = cells.get(label) if label else None
        what = _text_fault(cells, columns) or _label_fault(value)
        if vectors and not what:
            what = vectors.fault(cells.get(condition))
        if what:
            bad.add(where, what)
            continue
        if vectors and out.condition is not None:
            out.condition.append(vectors.vector(cells[condition]))
        out.where.append(where)
        out.text.append(cells[text])
        out.label.append(_scalar(value))
        if text_b and out.text_b is not None:
            out.text_b.append(cells[text_b])
    return out


def _column(
    path: epath.Path, header: list[str], config: DataConfig, what: str
) -> str | None:
    """Return the column for "text", "text_b" or "label", or None if it is missing."""
    asked = getattr(config, what)
    found = [n for n in ([asked] if asked else COLUMNS[what]) if n in header]
    if found and header.count(found[0]) > 1:
        raise UserError(f"{path} has two columns {found[0]!r}; rename one of them")
    return found[0] if found else None


def _required(
    path: epath.Path, header: list[str], config: DataConfig, what: str
) -> str:
    """Return the column like `_column`, but raise a UserError if it is missing."""
    column = _column(path, header, config, what)
    if column is not None:
        return column
    asked = getattr(config, what)
    wanted = repr(asked) if asked else " or ".join(COLUMNS[what])
    raise UserError(
        f"{path} has no column {wanted}; it has {listed(header)}. Name the column with "
        f"config.data.{what}=COLUMN"
    )


def _text_fault(cells: dict[str, Any], columns: list[str]) -> str:
    for name in columns:
        value = cells.get(name)
        value = "" if value is None else value
        if not isinstance(value, str):
            return f"{name} is {shown(value)}; expected a text"
        if not value.strip():
            return f"the text of column {name} is empty; expected a text"
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can contain half a character, "\\ud800"
            return (
                f"the text of column {name} is not Unicode; expected whole characters"
            )
    return ""


def _label_fault(value: Any) -> str:
    if isinstance(value, list | dict | bytes):
        return f"the label is {shown(value)}; expected a string or a number"
    return ""


def _scalar(value: Any) -> Label:
    """Return a label as a stripped string or a number, or None if it is missing."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) or value is None:
        return value
    return str(value).strip() or None


def _number(label: Label) -> float | None:
    try:
        return None if label is None else float(label)
    except (ValueError, OverflowError):
        return None


def _class_name(label: str | float) -> str:
    """Return the label as text, a whole number without a decimal point."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def _task(train: Raw, config: DataConfig) -> Task:
    """Return the task that the user chose, or else that the labels of train imply."""
    labels = [x for x in train.label if x is not None]
    numbers = [x for x in map(_number, labels) if x is not None]
    numeric = bool(labels) and len(numbers) == len(labels)
    real = numeric and not all(x.is_integer() for x in numbers if math.isfinite(x))
    guess = NUMBERS if real else CLASSES
    kind = KINDS[config.task] if config.task else guess
    pair = train.text_b is not None
    if kind is NUMBERS:
        return NUMBERS._replace(pair=pair)
    if numeric:  # NaN and infinity among whole numbers are not classes
        labels = [x for x in labels if math.isfinite(float(x))]
    classes = config.classes or _sorted_classes({_class_name(x) for x in labels})
    if len(classes) < 2:
        raise UserError(
            f"{config.train} has {len(classes)} class{'es' * (not classes)} "
            f"({listed(classes)}); expected two or more different labels to train on"
        )
    metrics = ("accuracy", "f1") if len(classes) == 2 else CLASSES.metrics
    return CLASSES._replace(labels=classes, metrics=metrics, pair=pair)


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    """Sort class names by value if all are whole numbers, else alphabetically."""
    numbers = [_number(x) for x in names]
    whole = all(x is not None and x.is_integer() for x in numbers)
    return tuple(sorted(names, key=float) if whole else sorted(names))


def _check_pairs(task: Task, raws: dict[str, Raw], paths: dict[str, str]) -> None:
    for name, raw in raws.items():
        if (raw.text_b is not None) != task.pair:
            has = "one text" if task.pair else "two texts"
            wanted = "two" if task.pair else "one"
            raise UserError(
                f"{paths[name]} has {has} per example; expected {wanted} as in "
                f"{paths['train']}. Add or remove the column"
            )


def _table(task: Task, raw: Raw, split: str, bad: BadRows) -> Table:
    to_id = _parser(task)
    keep, values = [], []
    for n, (where, label) in enumerate(zip(raw.where, raw.label, strict=True)):
        if label is None and split == "test":
            value, fault = -1 if task.labels else math.nan, ""
        else:
            value, fault = to_id(label)
        if fault:
            bad.add(where, fault)
            continue
        keep.append(n)
        values.append(value)
    return Table(
        np.asarray(keep, np.int64),
        [raw.text[n] for n in keep],
        None if raw.text_b is None else [raw.text_b[n] for n in keep],
        np.asarray(values, np.int32 if task.labels else np.float32),
        condition=None if raw.condition is None else _stacked(raw.condition, keep),
    )


def _stacked(vectors: list[np.ndarray], keep: list[int]) -> np.ndarray | None:
    return np.stack([vectors[n] for n in keep]) if keep else None


def _parser(task: Task) -> Callable[[Label], tuple[float, str]]:
    """Return a function from a label to (id or number, what is wrong with it)."""
    ids = {name: i for i, name in enumerate(task.labels)}
    names = listed(task.labels)

    def read_class(label: Label) -> tuple[float, str]:
        if label is None:
            return -1, "the label is missing; expected a label in every row"
        name = _class_name(label)
        if name in ids:
            return ids[name], ""
        return -1, f"unknown label {shown(name)}; expected a class of train ({names})"

    def read_number(label: Label) -> tuple[float, str]:
        value = _number(label)
        if value is None or not math.isfinite(value):
            return 0.0, f"label {shown(label)}; expected a finite number"
        return value, ""

    return read_class if task.labels else read_number
