"""Tables of examples, and how one is split in two by seed and ids."""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from hypelora_jax.data.tasks import Task, TaskSet
from hypelora_jax.errors import UserError


class Table(NamedTuple):
    """N examples: texts, labels, and soft labels if the source has them.

    `ids` (N,) int64 name the examples within their source. `label` (N,) is int32 with
    -1 for a missing label, or float32 with NaN for a missing one. Rows of `soft`
    (N, Y) float32 sum to 1. `condition`, float32 (N, C) or (N, S, C), has the vectors
    that the examples are conditioned on. `task`, int32 (N,), is the index of each
    example's task in a set of tasks.
    """

    ids: np.ndarray
    text: list[str]
    text_b: list[str] | None
    label: np.ndarray
    soft: np.ndarray | None = None
    condition: np.ndarray | None = None
    task: np.ndarray | None = None


class Splits(dict[str, Table]):
    """Splits by name; a missing split is a user error, so it raises a UserError."""

    def __missing__(self, name: str) -> Table:
        have = ", ".join(self) or "none"
        raise UserError(
            f"the data has no split {name!r}, only {have}; give its file, or choose "
            "another split"
        )


class Corpus(NamedTuple):
    """A task and its splits: train, calibration, validation and more.

    `splits[name]` raises a UserError for a missing split. With a set of tasks, `task`
    has the outputs that they share, and the splits have rows of all of them: those of
    tasks that do not train are in splits of their own, `held_out_validation` and more.
    """

    task: Task
    splits: Splits
    tasks: TaskSet | None = None


def digest(table: Table) -> str:
    """Return the SHA-256 of the examples of a table: ids, texts and labels, in hex."""
    out = hashlib.sha256(table.ids.tobytes() + table.label.tobytes())
    for texts in (table.text, table.text_b or ()):
        for text in texts:
            out.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return out.hexdigest()


def take(table: Table, rows: np.ndarray) -> Table:
    """Return the table of some rows, in the given order."""
    return Table(
        table.ids[rows],
        [table.text[i] for i in rows],
        None if table.text_b is None else [table.text_b[i] for i in rows],
        table.label[rows],
        None if table.soft is None else table.soft[rows],
        None if table.condition is None else table.condition[rows],
        None if table.task is None else table.task[rows],
    )


def with_classes(corpus: Corpus, classes: tuple[str, ...]) -> Corpus:
    """Give the classes of a corpus the ids of these names, which may be more.

    Raises:
      UserError: a class of the corpus is not among them, or it has numbers for labels.
    """
    task, splits = corpus.task, corpus.splits
    if not task.labels or not set(task.labels) <= set(classes):
        what = f"config.data.classes is {', '.join(classes)}"
        if not task.labels:
            raise UserError(
                f"{what}, but the labels of the data are numbers; expected no "
                "data.classes, or data.task=classification if the numbers in your "
                "files stand for classes"
            )
        raise UserError(
            f"{what}, but the labels of the data are {', '.join(task.labels)}; "
            "expected all classes of the data. The first name is class 0"
        )
    to = np.array([classes.index(name) for name in task.labels])

    def moved(table: Table) -> Table:
        label, soft = table.label.copy(), table.soft
        label[label >= 0] = to[label[label >= 0]]
        if soft is not None:
            wide = np.zeros((len(soft), len(classes)), soft.dtype)
            wide[:, to] = soft
            soft = wide
        return table._replace(label=label, soft=soft)

    splits = Splits({name: moved(table) for name, table in splits.items()})
    return corpus._replace(task=task._replace(labels=classes), splits=splits)


def _strata(label: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each class; for numbers, of each tenth in order of value."""
    if np.issubdtype(label.dtype, np.integer):
        return [np.flatnonzero(label == value) for value in np.unique(label)]
    return np.array_split(np.argsort(label, kind="stable"), 10)


def calibration_size(n: int, fraction: float) -> int:
    """Return the number to hold out: a fraction of n in 100..2000, at most n / 2."""
    return min(max(round(fraction * n), 100), 2000, n // 2)


def hold_out(table: Table, size: int, seed: int, salt: int) -> tuple[Table, Table]:
    """Draw about `size` examples, stratified; return (kept, held out).

    The draw depends on seed, salt and ids, but not on the order of the rows. At most
    half of each stratum is held out, so that the kept part still has every class.

    Raises:
      UserError: there are too few examples to hold any out.
    """
    rng = np.random.default_rng([seed, salt])
    by_id = np.argsort(table.ids, kind="stable")
    out = []
    share = size / max(len(by_id), 1)
    carry = 0.0
    for stratum in _strata(table.label[by_id]):
        want = share * len(stratum) + carry  # carry the rounding to the next stratum
        n = min(math.floor(want + 0.5), len(stratum) // 2)
        carry = want - n if n < len(stratum) // 2 else 0.0
        out.append(by_id[rng.permutation(stratum)[:n]])
    if not sum(map(len, out)):
        raise UserError(
            f"train has {len(by_id)} examples in {len(out)} classes, too few to hold "
            "some of each class out; give more, or files of data.calibration and "
            "validation"
        )
    drawn = np.zeros(len(by_id), bool)
    drawn[np.concatenate(out).astype(int)] = True
    return take(table, np.flatnonzero(~drawn)), take(table, np.flatnonzero(drawn))
