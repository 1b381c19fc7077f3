"""Reads the user's own files: finds columns by name, and the task by the labels."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import formats
from hypelora_jax.data import labels as labels_lib
from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.formats import ReadSheet
from hypelora_jax.data.formats.cells import listed, shown
from hypelora_jax.data.labels import Label
from hypelora_jax.data.sources.bad_rows import BadRows
from hypelora_jax.data.sources.raw_rows import Raw, read_raw
from hypelora_jax.data.tables import Splits, Table, hold_out
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError

# The tasks that labels may imply, before the names of classes are known.
CLASSES = Task("files", "classification", (), ("accuracy",), pair=False)
NUMBERS = Task("files", "regression", (), ("pearson", "spearman"), pair=False)
KINDS = {task.kind: task for task in (CLASSES, NUMBERS)}


def load(
    config: DataConfig,
    seed: int,
    vectors: Vectors | None = None,
    read: ReadSheet = formats.read,
) -> tuple[Task, Splits]:
    """Load the task, train, validation and, if given, calibration and test.

    If all labels are numbers and some are not whole, the task is a regression;
    `data.task` overrides this guess. Without a validation file a tenth of train is held
    out, and the log says so. `vectors` reads the column that `data.condition` names,
    and `read` the sheets.

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
            "config.data.train is empty; expected a file of examples "
            f"({formats.suffixes()}). Set config.data.train=FILE"
        )
    names = ("train", "validation", "calibration", "test")
    paths = {n: getattr(config, n) for n in names if getattr(config, n)}
    bad = BadRows(config.on_bad_row)
    raws = {n: read_raw(p, config, n, bad, vectors, read) for n, p in paths.items()}
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


def labelled(path: str, task: Task) -> Table:
    """Return the rows of one file of a known task; every row has a label.

    Columns are found by name, because there is no config.

    Raises:
      UserError: the file or a row of it cannot be used, or a label is not of the task.
    """
    bad = BadRows("")
    raw = read_raw(path, None, "train", bad)
    if (raw.text_b is not None) != task.pair:
        got, wanted = ("one", "two") if task.pair else ("two", "one")
        raise UserError(
            f"{path} has {got} text{'s' * (not task.pair)} per example; expected "
            f"{wanted}, as the run reads. Add or remove the column"
        )
    return _table(task, raw, "train", bad, "a label of the task")


def _hold_out_validation(splits: Splits, seed: int) -> Splits:
    train = splits["train"]
    kept, validation = hold_out(train, max(round(len(train.ids) / 10), 1), seed, salt=1)
    logging.info(
        "no validation file, so %d of %d train examples are held out for validation",
        len(validation.ids),
        len(train.ids),
    )
    return Splits({**splits, "train": kept, "validation": validation})


def _task(train: Raw, config: DataConfig) -> Task:
    """Return the task that the user chose, or else that the labels of train imply."""
    labels = [x for x in train.label if x is not None]
    numbers = [x for x in map(labels_lib.number, labels) if x is not None]
    finite = [x for x in numbers if math.isfinite(x)]
    # Only NaN and infinity are not numbers but names of classes.
    numeric = bool(finite) and len(numbers) == len(labels)
    real = numeric and not all(x.is_integer() for x in finite)
    guess = NUMBERS if real else CLASSES
    kind = KINDS[config.task] if config.task else guess
    pair = train.text_b is not None
    if kind is NUMBERS:
        return NUMBERS._replace(pair=pair)
    if numeric:  # NaN and infinity among numbers are not classes
        labels = [x for x in labels if math.isfinite(float(x))]
    elif not config.task and not config.classes:
        _check_commas(train)
    names = config.classes or _class_names(config.train, labels)
    if len(names) < 2:
        raise UserError(
            f"{config.train} has {len(names)} class{'es' * (not names)} "
            f"({listed(names)}); expected two or more different labels to train on"
        )
    metrics = ("accuracy", "f1") if len(names) == 2 else CLASSES.metrics
    return CLASSES._replace(labels=names, metrics=metrics, pair=pair)


def _check_commas(train: Raw) -> None:
    """Check that labels are not numbers with decimal commas, which would be names.

    Raises:
      UserError: every label is a number, and some have a decimal comma.
    """
    comma = ""
    for where, label in zip(train.where, train.label, strict=True):
        if labels_lib.has_decimal_comma(label):
            comma = comma or f"{where}: label {shown(label)}"
        elif label is not None and labels_lib.number(label) is None:
            return
    if comma:
        raise UserError(
            f"{comma} has a decimal comma; expected a decimal point, as in 0.5. "
            "Replace the commas, or set data.task=classification if such labels are "
            "names of classes"
        )


def _class_names(path: str, labels: Sequence[Label]) -> tuple[str, ...]:
    """Return the classes of train, by value if all are whole numbers, else by name."""
    found = labels_lib.classes(labels)
    for name, spellings in found.items():
        if len(spellings) > 1:
            logging.info(
                "%s: the labels %s are one class, %s", path, listed(spellings), name
            )
    numbers = [labels_lib.number(x) for x in found]
    whole = all(x is not None and x.is_integer() for x in numbers)
    if whole and {"-1", "0", "1"} <= set(found):
        logging.warning(
            "%s: -1 is a class, like %s; if it means that there is no label, leave "
            "its rows out",
            path,
            ", ".join(name for name in sorted(found, key=float) if name != "-1"),
        )
    names = sorted(found)
    return tuple(sorted(names, key=float) if whole else names)


def _check_pairs(task: Task, raws: dict[str, Raw], paths: dict[str, str]) -> None:
    for name, raw in raws.items():
        if (raw.text_b is not None) != task.pair:
            has = "one text" if task.pair else "two texts"
            wanted = "two" if task.pair else "one"
            raise UserError(
                f"{paths[name]} has {has} per example; expected {wanted} as in "
                f"{paths['train']}. Add or remove the column"
            )


def _table(
    task: Task, raw: Raw, split: str, bad: BadRows, known: str = "a class of train"
) -> Table:
    to_id = _parser(task, known)
    missing = _missing(task, raw.label) if split == "test" else set()
    keep, values = [], []
    for n, (where, label) in enumerate(zip(raw.where, raw.label, strict=True)):
        if n in missing:
            value, fault = -1 if task.labels else math.nan, ""
        else:
            value, fault = to_id(label)
        if fault:
            bad.add(where, fault)
            continue
        keep.append(n)
        values.append(value)
    if task.labels:
        _log_spellings(split, task, raw.label)
    return Table(
        np.asarray(keep, np.int64),
        [raw.text[n] for n in keep],
        None if raw.text_b is None else [raw.text_b[n] for n in keep],
        np.asarray(values, np.int32 if task.labels else np.float32),
        condition=None if raw.condition is None else _stacked(raw.condition, keep),
    )


def _stacked(vectors: list[np.ndarray], keep: list[int]) -> np.ndarray | None:
    return np.stack([vectors[n] for n in keep]) if keep else None


def _missing(task: Task, labels: list[Label]) -> set[int]:
    """Return the rows of a test file that have no label, and log those with -1.

    -1 means no label, as in GLUE, if it is not a class. Where labels are numbers, it
    means that only if every row has it.
    """
    out = {n for n, label in enumerate(labels) if labels_lib.is_missing(label)}
    said = {
        n for n, label in enumerate(labels) if labels_lib.means_none(label, task.labels)
    }
    if said - out and (task.labels or len(said) == len(labels)):
        logging.info(
            "test: %d rows have the label -1, which is read as no label",
            len(said - out),
        )
        return said
    return out


def _log_spellings(split: str, task: Task, labels: list[Label]) -> None:
    """Log the labels that are other spellings of a class, as 1.0 is of 1."""
    number_of = labels_lib.reader(task.labels)
    for text in dict.fromkeys(labels_lib.spelled(x) for x in labels if x is not None):
        n = number_of(text)
        if n is not None and split != "train" and text != task.labels[n]:
            logging.info(
                "%s: the label %s is read as the class %s", split, text, task.labels[n]
            )


def _parser(task: Task, known: str) -> Callable[[Label], tuple[float, str]]:
    """Return a function from a label to (id or number, what is wrong with it).

    `known` says in messages what a label must be.
    """
    number_of = labels_lib.reader(task.labels)
    names = listed(task.labels)

    def read_class(label: Label) -> tuple[float, str]:
        if label is None:
            return -1, "the label is missing; expected a label in every row"
        n = number_of(label)
        if n is not None:
            return n, ""
        name = labels_lib.spelled(label)
        return -1, f"unknown label {shown(name)}; expected {known} ({names})"

    def read_number(label: Label) -> tuple[float, str]:
        value = labels_lib.number(label)
        if value is None or not math.isfinite(value):
            return 0.0, f"label {shown(label)}; expected a finite number"
        return value, ""

    return read_class if task.labels else read_number
