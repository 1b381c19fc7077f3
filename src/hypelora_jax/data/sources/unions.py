"""The union of the corpora of several tasks, as one corpus whose rows name their task.

Tasks with the same label names, in any order, share these as their classes. Otherwise
the classes are class_0, class_1, ..., and class j of a task is its j-th label.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from hypelora_jax.config.sections import DataConfig
from hypelora_jax.data import labels as labels_lib
from hypelora_jax.data.formats.cells import listed, shown
from hypelora_jax.data.sources.task_fields import TaskEntry, refuse, within
from hypelora_jax.data.tables import Corpus, Splits, Table
from hypelora_jax.data.tasks import Task, TaskSet
from hypelora_jax.errors import UserError

HELD_OUT = "held_out_"  # begins the names of the splits of tasks that do not train
_ID_BITS = 32  # of the id of an example in its source; the task's index is above them
_TRAINING = ("train", "calibration")


class _Part(NamedTuple):
    """The corpus of one task.

    `names` are its labels, and `to` (C,) has the number of each class's label.
    """

    entry: TaskEntry
    corpus: Corpus
    names: tuple[str, ...]
    to: np.ndarray


def union(entries: Sequence[TaskEntry], load: Callable[[DataConfig], Corpus]) -> Corpus:
    """Return the rows of all tasks, split by split and task after task.

    The rows of held-out tasks are in splits of their own, and those of their splits
    train and calibration are left out. An example's id is that of its source, plus the
    index of its task times 2^32. Soft labels are kept if all tasks have some. Texts are
    those of the tables that `load` returns, not copies.

    Args:
      entries: the tasks.
      load: returns the corpus of one task; called once for each different config.

    Raises:
      UserError: the data of a task are missing or bad, its labels do not fit, or tasks
        do not fit together; the message names file and task.
    """
    loaded: dict[DataConfig, Corpus] = {}
    parts = list[_Part]()
    for entry in entries:
        if entry.data not in loaded:
            try:
                loaded[entry.data] = load(entry.data)
            except UserError as e:
                raise within(entry.where, e) from e
        parts.append(_part(entry, loaded[entry.data]))
    _check_pairs(parts)
    labels, parts = _shared(parts)
    tables = dict[str, list[tuple[int, Table]]]()
    for k, part in enumerate(parts):
        for name, table in _splits(part).items():
            tables.setdefault(name, []).append((k, table))
    soft = all(t.soft is not None for x in parts for t in x.corpus.splits.values())
    splits = {name: _joined(x, parts, len(labels), soft) for name, x in tables.items()}
    pair = parts[0].corpus.task.pair
    task = Task("tasks", "classification", labels, ("accuracy",), pair)
    return Corpus(task, Splits(splits), _task_set(parts))


def _part(entry: TaskEntry, corpus: Corpus) -> _Part:
    classes = corpus.task.labels
    if not classes:
        refuse(
            entry.where,
            "its labels are numbers (a regression)",
            "classes. In a set of tasks, set data.task=classification if the numbers "
            "stand for classes",
        )
    if not entry.labels:
        return _Part(entry, corpus, classes, np.arange(len(classes)))
    number_of, names = labels_lib.reader(classes), tuple(entry.labels)
    to = np.full(len(classes), -1)
    for j, (name, own) in enumerate(entry.labels.items()):
        for one in own:
            c = number_of(one)
            if c is None:
                what = f"the label {shown(name)} stands for {shown(one)}"
                refuse(entry.where, what, f"a class of the data ({listed(classes)})")
            if to[c] not in (-1, j):
                what = f"the labels {shown(names[to[c]])} and {shown(name)} both stand"
                refuse(entry.where, f"{what} for {shown(one)}", "one label a class")
            to[c] = j
    if left := [name for name, j in zip(classes, to, strict=True) if j < 0]:
        refuse(
            entry.where,
            f"no label stands for the class {shown(left[0])} of the data",
            f"each of {listed(classes)} in labels",
        )
    return _Part(entry, corpus, names, to)


def _check_pairs(parts: Sequence[_Part]) -> None:
    for one in parts:
        if one.corpus.task.pair != parts[0].corpus.task.pair:
            number = "two texts" if one.corpus.task.pair else "one text"
            refuse(
                one.entry.where,
                f"its examples have {number}, those of task {parts[0].entry.name} not",
                "one text in all tasks, or two in all",
            )


def _shared(parts: list[_Part]) -> tuple[tuple[str, ...], list[_Part]]:
    """Return the classes of the set, and the parts with labels in their order."""
    first = parts[0].names
    unlike = [one for one in parts if sorted(one.names) != sorted(first)]
    for one in unlike:
        if sorted(map(str.casefold, one.names)) == sorted(map(str.casefold, first)):
            refuse(
                one.entry.where,
                f"its labels are {listed(one.names)}, and those of task "
                f"{parts[0].entry.name} are {listed(first)}",
                "labels in the same spelling",
            )
    if unlike:
        longest = max(len(one.names) for one in parts)
        labels = tuple(f"class_{j}" for j in range(longest))
        logging.warning(
            "the tasks have different labels, so the classes are %s, and class_0 is "
            "the first label of each task; task %s has %s, and task %s has %s",
            listed(labels),
            *(parts[0].entry.name, listed(first)),
            *(unlike[0].entry.name, listed(unlike[0].names)),
        )
        return labels, parts
    out = list[_Part]()
    for one in parts:
        order = np.array([first.index(name) for name in one.names])
        out.append(one._replace(names=first, to=order[one.to]))
    return first, out


def _splits(part: _Part) -> dict[str, Table]:
    """Return the splits of a task by their names in the union."""
    splits = part.corpus.splits
    if not part.entry.held_out:
        if "train" not in splits:
            refuse(
                part.entry.where, "its data have no split train", "examples to learn"
            )
        return dict(splits)
    out = {HELD_OUT + n: t for n, t in splits.items() if n not in _TRAINING}
    if not out:
        refuse(
            part.entry.where,
            f"it is held out, but its data have only {listed(splits)}",
            "a validation or test split",
        )
    return out


def _joined(
    tables: Sequence[tuple[int, Table]],
    parts: Sequence[_Part],
    num_classes: int,
    soft: bool,
) -> Table:
    """Return the rows of tables, each with the index of its task, as one table."""
    labels, softs = list[np.ndarray](), list[np.ndarray]()
    pair = tables[0][1].text_b is not None
    for k, table in tables:
        to = parts[k].to
        known = table.label >= 0
        labels.append(np.where(known, to[np.where(known, table.label, 0)], -1))
        if soft and table.soft is not None:
            # A label that stands for several classes has the sum of their shares.
            softs.append(table.soft @ np.eye(num_classes, dtype=np.float32)[to])
    return Table(
        np.concatenate([t.ids + (np.int64(k) << _ID_BITS) for k, t in tables]),
        [text for _, t in tables for text in t.text],
        [text for _, t in tables for text in t.text_b or ()] if pair else None,
        np.concatenate(labels).astype(np.int32),
        np.concatenate(softs) if soft else None,
        task=np.concatenate([np.full(len(t.ids), k, np.int32) for k, t in tables]),
    )


def _task_set(parts: Sequence[_Part]) -> TaskSet:
    entries = [one.entry for one in parts]
    adapters = tuple(one.adapter for one in entries)
    return TaskSet(
        names=tuple(one.name for one in entries),
        descriptions=tuple(one.descriptions for one in entries),
        labels=tuple(one.names for one in parts),
        held_out=tuple(one.held_out for one in entries),
        weights=tuple(one.weight for one in entries),
        paraphrases=tuple(one.paraphrases for one in entries),
        negations=tuple(one.negations for one in entries),
        adapters=adapters if any(adapters) else (),
    )


def task_of(id_N: np.ndarray) -> np.ndarray:
    """Return the index of each example's task, from the ids of `union`."""
    return id_N >> _ID_BITS


def describe(corpus: Corpus) -> list[str]:
    """Return one line on each task, its rows and shares of labels, and one on all."""
    tasks = corpus.tasks
    if tasks is None:
        return []
    total = len(tasks.names)
    rows = [list[str]() for _ in range(total)]
    counts = np.zeros((total, len(corpus.task.labels)), np.int64)
    for name, table in corpus.splits.items():
        assert table.task is not None  # as `union` makes them
        sizes = np.bincount(table.task, minlength=total)
        for k in np.flatnonzero(sizes):
            rows[k].append(f"{name.removeprefix(HELD_OUT)} {sizes[k]}")
        known = table.label >= 0
        np.add.at(counts, (table.task[known], table.label[known]), 1)
    out = list[str]()
    for i, name in enumerate(tasks.names):
        shares = counts[i] / max(counts[i].sum(), 1)
        pairs = zip(tasks.labels[i], shares, strict=False)
        about = ", ".join(f"{label} {share:.1%}" for label, share in pairs)
        role = "held out" if tasks.held_out[i] else "trains"
        out.append(f"task {name}, {role}: {', '.join(rows[i])}; {about}")
    held = sum(tasks.held_out)
    size = sum(len(table.ids) for table in corpus.splits.values())
    return [*out, f"{total} tasks, of which {held} held out; {size} examples"]
