"""The task that a question is about, for runs that make an adapter for each task.

A question describes its task, names one of the run's set, or gives a vector. All texts
of a task have one adapter, which `inference.task_adapters` makes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration import calibrators
from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.formats.cells import listed, shown, text_fault
from hypelora_jax.data.sources.task_fields import MAX_DESCRIPTION
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import averaging
from hypelora_jax.evaluate.fitted import Fitted

LABELS = 16  # of a described task in a bank, unless a task of the set has more
MAX_LABEL = 200  # characters
WAYS = ("description", "task", "condition")  # in which a question may say its task


class AskedTask(NamedTuple):
    """The task of a question: a description, a name or a vector, one of the three.

    Without `labels` its classes are those of the named task, or of the run.
    """

    description: str = ""
    task: str = ""
    condition: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


def reader(
    fitted: Fitted, vectors: Vectors | None, most: int = LABELS
) -> "TaskReader | None":
    """Return what reads the task of each question; None for other runs.

    The network must read nothing but the task, and one pass of one adapter must answer.
    A described task may have `most` labels, or as many as a task of the set.
    """
    session, parts = fitted.session, fitted.session.model.parts
    reads = tuple(name for name in session.model.reads if name != "row")
    tasks = session.tasks
    single = averaging.single_pass(session.settings) and "backbone" in fitted.frozen
    if tasks is None or not single or not (*reads, *parts.head.reads):
        return None
    if not {*reads} <= {*tasks.conditions}:
        return None
    return TaskReader(fitted, vectors, reads, most)


class TaskReader:
    """Turns the cells of a question into the task that it is about.

    `reads` are the batch entries that the network reads of a task, `room` is the most
    classes that a task may have. With `describes` a task may be described, and with
    `names_labels` a described task may have labels of its own.
    """

    def __init__(
        self,
        fitted: Fitted,
        vectors: Vectors | None,
        reads: tuple[str, ...],
        most: int,
    ):
        """Build the reader of a run, whose conditions, if any, `vectors` reads."""
        session, head = fitted.session, fitted.session.model.parts.head
        assert session.task_set is not None  # as `reader` has checked
        self.names = session.task_set.names
        self.number = {name: k for k, name in enumerate(self.names)}
        self.reads = reads
        self.names_labels = "labels" in head.reads
        self.describes = reads == ("condition",) and "task" not in head.reads
        self._run, self._own = session.task.labels, session.task_set.labels
        self.room = max(most, len(self._run)) if self.names_labels else len(self._run)
        self._vectors, self._calibrator = vectors, fitted.calibrator

    def fault(self, cells: Mapping[str, Any]) -> str:
        """Return the reason why cells do not say a task of this run, or "".

        The cells `description`, `task`, `condition` and `labels` count. One that is
        missing, None or empty is not given.
        """
        given = [name for name in WAYS if not _empty(cells.get(name))]
        if not given:
            return f"it does not say its task; expected {self._wanted()}"
        if len(given) > 1:
            return f"it has a {' and a '.join(given)}; expected one of them"
        (name,) = given
        what = self._task_fault(name, cells[name])
        if not what and name != "task" and self._unnamed(cells):
            return (
                "it has no labels, and the tasks of this run have different ones; "
                "expected labels, a list of names"
            )
        own = () if what else self.labels_of(cells[name] if name == "task" else "")
        return what or self._labels_fault(cells.get("labels"), own)

    def asked(self, cells: Mapping[str, Any]) -> AskedTask:
        """Return the task of cells that have no fault."""
        description, task = (cells.get(n) or "" for n in ("description", "task"))
        vector, names = cells.get("condition"), _names(cells.get("labels")) or ()
        own = self.labels_of(task)
        labels = tuple(names) if self.names_labels and tuple(names) != own else ()
        values: tuple[float, ...] = ()
        if self._vectors is not None and not _empty(vector):
            values = tuple(self._vectors.vector(vector).tolist())
        return AskedTask(description.strip(), task, values, labels)

    def labels_of(self, task: str = "") -> tuple[str, ...]:
        """Return the labels of a task of the set, or those of the run for ""."""
        if not task:
            return self._run
        own = self._own[self.number[task]]
        return own if self.names_labels else (*own, *self._run[len(own) :])

    def _unnamed(self, cells: Mapping[str, Any]) -> bool:
        """Return whether a head that reads names would read class_0, class_1, ..."""
        unlike = all(sorted(own) != sorted(self._run) for own in self._own)
        return self.names_labels and unlike and _empty(cells.get("labels"))

    def _task_fault(self, name: str, cell: Any) -> str:
        if name == "task":
            if isinstance(cell, str) and cell in self.number:
                return ""
            return f"there is no task {shown(cell)}; expected {self._wanted()}"
        if not self.describes:
            return f"this run does not read a {name}; expected {self._wanted()}"
        if name == "condition":
            return "" if self._vectors is None else self._vectors.fault(cell)
        if what := text_fault(cell):
            return f"the description is {shown(cell)}; {what}"
        if len(cell) > MAX_DESCRIPTION:
            return (
                f"the description has {len(cell):,} characters; expected at most "
                f"{MAX_DESCRIPTION:,}"
            )
        return ""

    def _labels_fault(self, cell: Any, own: tuple[str, ...]) -> str:
        names = list(own) if _empty(cell) else _names(cell)
        if names is None or any(text_fault(name) for name in names):
            return f"the labels are {shown(cell)}; expected a list of names"
        if long := [name for name in names if len(name) > MAX_LABEL]:
            size = len(long[0])
            return f"a label has {size:,} characters; expected at most {MAX_LABEL}"
        different = {*names}
        if not self.names_labels:
            if different == {*own} and len(names) == len(own):
                return ""
            return (
                f"the labels are {listed(names)}, but the head of this run answers "
                f"{listed(own)}; expected those, or a run with head.kind=label_text"
            )
        if not 2 <= len(different) == len(names) <= self.room:
            wanted = f"2 to {self.room} different names"
            return f"the labels are {listed(names)}; expected {wanted}"
        try:
            calibrators.apply(self._calibrator, np.zeros((1, len(names))))
        except UserError as e:
            return str(e)
        return ""

    def _wanted(self) -> str:
        task = f"task, one of {listed(self.names)}"
        return f"description, a text, or {task}" if self.describes else task


def _empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str | list | tuple) and not cell)


def _names(cell: Any) -> list[str] | None:
    """Return the names in a cell, a list or a text with commas; None for others."""
    if isinstance(cell, str):
        cell = cell.split(",")
    if not isinstance(cell, list | tuple):
        return None
    return [name.strip() if isinstance(name, str) else name for name in cell]
