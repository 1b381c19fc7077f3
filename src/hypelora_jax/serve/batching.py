"""Batching of questions that arrive one by one; a batch has one adapter and length T.

Each caller awaits a future. One thread runs the model; while it is busy, questions
collect in groups by (adapter, T), and the group with the oldest question goes next. An
idle service waits a window of some milliseconds for more questions before it answers.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.inference.answers import Fields
from hypelora_jax.inference.predictor import (
    Predictor,
    batch_answers,
    token_dataset,
    tokenise,
)
from hypelora_jax.serve.adapter_pool import AdapterPool
from hypelora_jax.serve.meters import Meters
from hypelora_jax.train.divergence import NotFinite

Key = tuple[str, int]  # adapter, T of the bucket
Seconds = dict[str, dict[tuple[int, int], float]]  # by adapter, then by (rows, T)
# Two costs count as equal within this factor. They are measured at the start, when the
# machine may be busy, and larger batches need less time per text for threads and JSON.
TOLERANCE = 1.3


class Full(Exception):
    """The queue is full."""


class Pending(NamedTuple):
    """A tokenised text in the queue since time `since` (time.monotonic, seconds)."""

    texts: tuple[str, ...]
    ids: np.ndarray
    types: np.ndarray
    condition: np.ndarray | None
    answer: "asyncio.Future[Fields]"
    since: float


def best_rows(seconds: dict[tuple[int, int], float], edge: int, waiting: int) -> int:
    """Return the rows of the largest batch whose cost per text is about the lowest.

    `edge` is the length T. If more rows cost no more time, the batch has room for all
    `waiting` texts. If every row costs time, as on a CPU, it has few padding rows.
    """
    sizes = sorted(rows for rows, t in seconds if t == edge)
    holds = next((rows for rows in sizes if rows >= waiting), sizes[-1])
    cost = {
        rows: seconds[rows, edge] / min(rows, waiting)
        for rows in sizes
        if rows <= holds
    }
    least = min(cost.values())
    return max(rows for rows, each in cost.items() if each <= TOLERANCE * least)


class Batcher:
    """The queue and the two threads of a service; use it from one event loop only."""

    def __init__(
        self,
        pool: AdapterPool,
        seconds: Seconds,
        meters: Meters,
        window: float = 0.002,
        max_waiting: int = 1024,
    ):
        """Create the queue; answering starts with `async with`.

        Args:
          seconds: the result of `Predictor.warm` for each adapter.
          window: seconds that a text waits for others.
          max_waiting: how many texts may be without an answer.
        """
        self._pool, self._seconds, self._meters = pool, seconds, meters
        self._window, self._max_waiting = window, max_waiting
        self._most = {name: max(one.answerers) for name, one in pool.items()}
        self._groups: dict[Key, deque[Pending]] = {}
        self._waiting = 0  # texts without an answer
        self._changed = asyncio.Event()
        self._model, self._tokens = (ThreadPoolExecutor(1, n) for n in ("model", "tok"))
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batcher":
        """Start answering."""
        self._work = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: Any) -> None:
        """Stop, after both threads have finished their work."""
        if self._work is not None:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work
        for thread in (self._model, self._tokens):
            thread.shutdown()

    async def ask(
        self,
        name: str,
        texts: Sequence[tuple[str, ...]],
        conditions: Sequence[np.ndarray | None] | None = None,
    ) -> list[Fields]:
        """Answer checked texts with one adapter, in their order.

        `conditions` are the vectors of the texts, for an adapter that reads them.

        Raises:
          Full: too many texts are waiting.
          NotFinite: the model's outputs for a text are NaN or infinite.
        """
        if self._waiting + len(texts) > self._max_waiting:
            raise Full
        self._count(len(texts))
        try:
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(
                self._tokens, tokenise, self._pool[name], texts
            )
            self._meters.cut += encoded.truncated
            given = conditions or [None] * len(texts)
            rows = zip(texts, encoded.ids, encoded.types, given, strict=True)
            futures = [self._put(name, *row) for row in rows]
            return list(await asyncio.gather(*futures))
        finally:
            self._count(-len(texts))

    def _count(self, texts: int) -> None:
        self._waiting += texts
        self._meters.waiting = self._waiting

    def _put(
        self,
        name: str,
        texts: tuple[str, ...],
        ids: np.ndarray,
        types: np.ndarray,
        condition: np.ndarray | None,
    ) -> "asyncio.Future[Fields]":
        edges = self._pool[name].edges
        key = (name, edges[int(np.searchsorted(edges, len(ids)))])
        answer = asyncio.get_running_loop().create_future()
        group = self._groups.setdefault(key, deque())
        group.append(Pending(texts, ids, types, condition, answer, time.monotonic()))
        # Wake the loop only for a full batch or for the first text of an empty queue.
        if self._full(key) or len(self._groups) == len(group) == 1:
            self._changed.set()
        return answer

    def _full(self, key: Key) -> bool:
        return len(self._groups[key]) >= self._most[key[0]]

    async def _next(self) -> Key:
        """Wait for the next group: the one with the oldest text, after its window.

        Until that window is over, another group goes first if it is full.
        """
        while True:
            self._changed.clear()
            if not self._groups:
                await self._changed.wait()
                continue
            oldest = min(self._groups, key=lambda key: self._groups[key][0].since)
            left = self._groups[oldest][0].since + self._window - time.monotonic()
            if left <= 0:
                return oldest
            if full := next(filter(self._full, self._groups), None):
                return full
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    async def _run(self) -> None:
        while True:
            key = await self._next()
            group, seconds = self._groups[key], self._seconds[key[0]]
            rows = best_rows(seconds, key[1], len(group))
            batch = [group.popleft() for _ in range(min(rows, len(group)))]
            if not group:
                del self._groups[key]
            await self._answer(key, rows, batch)

    async def _answer(self, key: Key, rows: int, batch: list[Pending]) -> None:
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(
            self._model, _fields, self._pool[key[0]], rows, batch
        )
        try:
            fields = await job
        except NotFinite as error:  # the other texts of the batch have an answer
            bad = set(error.rows.tolist())
            _fail([batch[i] for i in bad], error)
            rest = [one for i, one in enumerate(batch) if i not in bad]
            if rest:
                await self._answer(key, rows, rest)
            return
        except Exception as error:  # callers get it; the loop goes on
            _fail(batch, error)
            return
        self._meters.saw_batch(key[0], len(batch), rows)
        for pending, one in zip(batch, fields, strict=True):
            if not pending.answer.done():  # the caller may have left
                pending.answer.set_result(one)


def _fail(batch: list[Pending], error: Exception) -> None:
    for pending in batch:
        if not pending.answer.done():  # the caller may have left
            pending.answer.set_exception(error)


def _fields(predictor: Predictor, rows: int, batch: list[Pending]) -> list[Fields]:
    given = None if predictor.vectors is None else [q.condition for q in batch]
    tokens = [q.ids for q in batch], [q.types for q in batch]
    data = token_dataset(predictor, *tokens, given)
    return batch_answers(predictor, [q.texts for q in batch], data, rows)
