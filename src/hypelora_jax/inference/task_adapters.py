"""Adapters that a run makes on demand: for tasks of its set, and for described ones.

A run of a set of tasks whose network reads descriptions has no adapter of its own. A
question says its task, and the network writes the adapter when a batch needs it, into a
slot of a bank (`inference.bank`). An adapter that has left the bank is written again
from the same vector, so its numbers are the same.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax import families, trees
from hypelora_jax import model as model_lib
from hypelora_jax.config.adapter_sections import HeadConfig
from hypelora_jax.families.label_text_head import with_labels
from hypelora_jax.inference.answers import Fields
from hypelora_jax.inference.asked_tasks import AskedTask
from hypelora_jax.inference.bank import Arrays, Bank, Entry
from hypelora_jax.inference.predictor import (
    Answers,
    Predictor,
    token_dataset,
    tokenise,
)
from hypelora_jax.train.conditioning import text_encoder
from hypelora_jax.train.conditioning.nearness import Nearest, nearest_of
from hypelora_jax.train.divergence import NotFinite
from hypelora_jax.types import ABSENT, Batch, Params

KEPT = 1024  # tasks and texts whose vectors are kept; the oldest is forgotten first


class TaskAdapters:
    """The adapters of one run, as entries of a bank of `slots` adapters.

    One thread at a time calls `entry`. The thread of the bank may be another one.
    """

    def __init__(self, predictor: Predictor, slots: int):
        """Build an empty bank for a run that has a reader of tasks.

        Nothing is embedded and nothing compiled.
        """
        fitted, session = predictor.fitted, predictor.fitted.session
        assert predictor.tasks is not None
        assert session.task_set is not None and session.tasks is not None
        self.tasks, self._arrays = predictor.tasks, session.tasks
        self._fitted, self._held_out = fitted, session.task_set.held_out
        self._params = trees.union(fitted.trainable, fitted.frozen)
        self._predictor = _with_plain_head(predictor, self.tasks.room)
        choices = self._arrays.choices.get("condition")
        self._condition = session.settings.condition
        near = functools.partial(nearest_of, parts=self._condition.parts)
        self._nearest = near(session.task_set, choices) if choices else None
        self._embed = functools.lru_cache(KEPT)(
            lambda text, layers=0: text_encoder.embed(
                self._condition.encoder, [text], layers
            )[0]
        )
        self._kept: dict[AskedTask, Entry] = {}
        shapes = jax.eval_shape(self._written, self._blank())
        self.bank = Bank(self._predictor, shapes, slots)

    def warm(self) -> dict[tuple[int, int], float]:
        """Compile everything; return the seconds of a batch, by (rows, T).

        Raises:
          UserError: the encoder of descriptions is missing.
        """
        if self.tasks.describes:
            of_names = {0} if self.tasks.names_labels else set()
            for layers in {self._condition.sign} | of_names:
                text_encoder.warm(self._condition.encoder, layers)
        blank = functools.partial(self._written, self._blank())
        return self.bank.warm(Entry(self.bank, self._predictor, blank))

    def known(self, asked: AskedTask) -> Entry | None:
        """Return the entry of a task that has been asked before, if it is kept."""
        return self._kept.get(asked)

    def entry(self, asked: AskedTask) -> Entry:
        """Return the entry of a task; the first time its texts are embedded."""
        found = self._kept.get(asked)
        if found is None:
            found = self._entry(asked)
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[asked] = found
        return found

    def answer(
        self, texts: Sequence[tuple[str, ...]], asked: Sequence[AskedTask]
    ) -> Answers:
        """Answer checked texts, each for its task, all of them in memory at once.

        Raises:
          NotFinite: the outputs for a text are NaN or infinite.
        """
        if not texts:
            return Answers([], 0)
        entries = [self.entry(one) for one in asked]
        encoded = tokenise(self._predictor, texts)
        out: list[Fields] = [{}] * len(texts)
        distinct, rows = [*dict.fromkeys(entries)], max(self._predictor.answerers)
        for start in range(0, len(distinct), self.bank.slots):
            chosen = set(distinct[start : start + self.bank.slots])
            at = [i for i, entry in enumerate(entries) if entry in chosen]
            ids, types = ([x[i] for i in at] for x in encoded[:2])
            data = token_dataset(self._predictor, ids, types)
            own = [entries[i] for i in at], [texts[i] for i in at]
            try:
                found = self.bank.answer(*own, data, rows)
            except NotFinite as e:
                bad = np.array(at)[e.rows]
                raise NotFinite(bad, int(bad[0])) from None
            for i, fields in zip(at, found, strict=True):
                out[i] = fields
        return Answers(out, encoded.truncated)

    def _entry(self, asked: AskedTask) -> Entry:
        batch = {**self._conditions(asked), **self._of_head(asked)}
        about, written = (
            self._about(asked, batch),
            functools.partial(self._written, batch),
        )
        return Entry(self.bank, self._answering(asked), written, about)

    def _conditions(self, asked: AskedTask) -> dict[str, np.ndarray]:
        """Return what the network reads of a task, with U = 1."""
        if asked.task:
            k = self.tasks.number[asked.task]
            return {n: self._arrays.conditions[n][k : k + 1] for n in self.tasks.reads}
        if asked.condition:
            return {"condition": np.array(asked.condition, np.float32)[None]}
        x_C = self._embed(asked.description, self._condition.sign)
        return {"condition": x_C[None]}

    def _of_head(self, asked: AskedTask) -> dict[str, Any]:
        """Return what the head reads of a task; labels are padded with zeros."""
        if not self.tasks.names_labels:
            return {"task": np.int32(self.tasks.number.get(asked.task, 0))}
        if asked.task and not asked.labels:
            e_YE = self._arrays.rows["labels"][self.tasks.number[asked.task]]
        else:
            names = asked.labels or self.tasks.labels_of()
            e_YE = np.stack([self._embed(name) for name in names])
        out = self._blank()["labels"]
        out[: len(e_YE)] = e_YE
        return {"labels": out}

    def _about(self, asked: AskedTask, batch: Mapping[str, np.ndarray]) -> Fields:
        if asked.task and not self._held_out[self.tasks.number[asked.task]]:
            return Nearest(asked.task, 0.0)._asdict()
        if self._nearest is None:  # the run reads no descriptions
            return {}
        return self._nearest(batch["condition"][0])._asdict()

    def _answering(self, asked: AskedTask) -> Predictor:
        """Return the predictor with the names of a task's classes."""
        own, names = self._predictor, asked.labels or self.tasks.labels_of(asked.task)
        task, threshold = own.task, own.threshold
        if asked.labels or len(names) != len(task.labels):
            threshold = None  # of conformal sets: it was fitted for other classes
        session = own.fitted.session._replace(task=task._replace(labels=names))
        fitted = own.fitted._replace(session=session)
        return own._replace(fitted=fitted, threshold=threshold)

    def _written(self, batch: Mapping[str, Any]) -> Arrays:
        """Let the network write the adapter of a task; return it with the head."""
        fitted, session = self._fitted, self._fitted.session
        own = {name: batch[name] for name in self.tasks.reads}
        adapter = fitted.forward.adapt(self._params, np.asarray(fitted.alpha), own)
        of_task = {name: batch[name] for name in session.model.parts.head.reads}
        width = session.settings.head.width
        head = _head(width, session.task.classes, self._params["head"], of_task)
        return Arrays(adapter.factors, head)

    def _blank(self) -> dict[str, Any]:
        """Return zeros of the shapes that `_written` reads."""
        arrays = self._arrays
        out: dict[str, Any] = {
            n: np.zeros_like(arrays.conditions[n][:1]) for n in self.tasks.reads
        }
        if not self.tasks.names_labels:
            return {**out, "task": np.int32(0)}
        shape = (self.tasks.room, arrays.rows["labels"].shape[-1])
        return {**out, "labels": np.zeros(shape, np.float32)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _head(width: int, classes: tuple[int, ...], head: Params, of_task: Batch) -> Params:
    """Return the head of one task as a head of kind `classes`.

    `of_task` has what the head reads of a task; `width` is config.head.width, and
    `classes` are the numbers of classes of the tasks if they differ.
    """
    if "labels" in of_task:
        return with_labels(head, of_task["labels"], width)
    if "task" not in of_task:
        return head
    # the layers that each task has of its own have a first axis of tasks
    own = {
        name: jax.tree.map(lambda x: x[of_task["task"]], layer)
        if layer["kernel"].ndim == 3
        else layer
        for name, layer in head.items()
    }
    if not classes:
        return own
    out = own["out"]
    given_Y = jnp.arange(len(out["bias"])) < jnp.asarray(classes)[of_task["task"]]
    kernel_DY = jnp.where(given_Y[None], out["kernel"], 0)
    return {
        **own,
        "out": {"kernel": kernel_DY, "bias": jnp.where(given_Y, out["bias"], ABSENT)},
    }


def _with_plain_head(predictor: Predictor, room: int) -> Predictor:
    """Return the predictor with a head that reads nothing of tasks, without vectors.

    The head has `room` classes.
    """
    fitted = predictor.fitted
    session, parts = fitted.session, fitted.session.model.parts
    task = session.task._replace(labels=("",) * room)
    dtype = session.settings.model.dtype
    plain = families.head(HeadConfig(), session.base.config, task, dtype=dtype)
    model = model_lib.of_parts(parts._replace(head=plain))
    fitted = fitted._replace(session=session._replace(model=model))
    return predictor._replace(fitted=fitted, vectors=None)
