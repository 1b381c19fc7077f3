"""Questions that arrive one by one, answered in batches of one adapter and length.

Whoever asks waits for a future. One thread runs the model; while it is busy questions
gather by (adapter, T), and the group of the oldest one goes next. An idle service waits
a window of some milliseconds for company before it answers.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.inference import predictor
from hypelora_jax.serve.adapter_pool import Shelf
from hypelora_jax.serve.meters import Meters

Key = tuple[str, int]  # adapter, T of the bucket
Fields = dict[str, Any]
Seconds = dict[str, dict[tuple[int, int], float]]  # by adapter, of a (rows, T)
# Costs are timed at the start, on a machine that may be busy; and what stands around
# the model (threads, JSON) costs less in larger batches.
ABOUT = 1.3


class Full(Exception):
    """More texts wait than may."""


class Question(NamedTuple):
    """A tokenised text that waits since `since` (seconds of time.monotonic)."""

    texts: tuple[str, ...]
    ids: np.ndarray
    types: np.ndarray
    answer: asyncio.Future
    since: float


def best_rows(seconds: dict[tuple[int, int], float], edge: int, waiting: int) -> int:
    """Rows of the largest batch that costs about the least for each text it answers.

    Where a row more costs nothing that is a batch which holds all; where each costs
    its time, as on a CPU, one with few padding rows.
    """
    sizes = sorted(rows for rows, t in seconds if t == edge)
    holds = next((rows for rows in sizes if rows >= waiting), sizes[-1])
    cost = {
        rows: seconds[rows, edge] / min(rows, waiting)
        for rows in sizes
        if rows <= holds
    }
    least = min(cost.values())
    return max(rows for rows, each in cost.items() if each <= ABOUT * least)


class Batcher:
    """The queue and the two threads behind a service; lives in one event loop."""

    def __init__(
        self,
        shelf: Shelf,
        seconds: Seconds,
        meters: Meters,
        window: float = 0.002,
        max_waiting: int = 1024,
    ):
        """`window`: seconds a text waits for company; `seconds`: see Loaded.warm."""
        self._shelf, self._seconds, self._meters = shelf, seconds, meters
        self._window, self._max_waiting = window, max_waiting
        self._most = {name: max(one.answerers) for name, one in shelf.items()}
        self._groups: dict[Key, deque[Question]] = {}
        self._waiting = 0  # texts that came in and have no answer yet
        self._changed = asyncio.Event()
        self._model, self._tokens = (ThreadPoolExecutor(1, n) for n in ("model", "tok"))
        self._work: asyncio.Task | None = None

    async def __aenter__(self) -> "Batcher":
        """Start answering."""
        self._work = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: Any) -> None:
        """Stop, once what runs in the threads has ended."""
        self._work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._work
        for thread in (self._model, self._tokens):
            thread.shutdown()

    async def ask(self, name: str, texts: Sequence[tuple[str, ...]]) -> list[Fields]:
        """Answers of an adapter to texts that have no fault, in their order.

        Raises:
          Full: too many texts wait.
        """
        if self._waiting + len(texts) > self._max_waiting:
            raise Full
        self._count(len(texts))
        try:
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(
                self._tokens, predictor.tokenised, self._shelf[name], texts
            )
            self._meters.cut += encoded.truncated
            rows = zip(texts, encoded.ids, encoded.types, strict=True)
            return await asyncio.gather(*[self._put(name, *row) for row in rows])
        finally:
            self._count(-len(texts))

    def _count(self, texts: int) -> None:
        self._waiting += texts
        self._meters.waiting = self._waiting

    def _put(self, name: str, *row: Any) -> asyncio.Future:
        edges, ids = self._shelf[name].edges, row[1]
        key = (name, edges[int(np.searchsorted(edges, len(ids)))])
        answer = asyncio.get_running_loop().create_future()
        group = self._groups.setdefault(key, deque())
        group.append(Question(*row, answer, time.monotonic()))
        if self._full(key) or len(self._groups) == len(group) == 1:
            self._changed.set()
        return answer

    def _full(self, key: Key) -> bool:
        return len(self._groups[key]) >= self._most[key[0]]

    async def _next(self) -> Key:
        """The group to answer: of the oldest text, or a full one within its window."""
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

    async def _answer(self, key: Key, rows: int, batch: list[Question]) -> None:
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(
            self._model, _fields, self._shelf[key[0]], rows, batch
        )
        try:
            fields = await job
        except Exception as error:  # whoever asked hears of it; the next batch goes on
            for question in batch:
                if not question.answer.done():
                    question.answer.set_exception(error)
            return
        self._meters.saw_batch(key[0], len(batch), rows)
        for question, one in zip(batch, fields, strict=True):
            if not question.answer.done():  # who asked may have left
                question.answer.set_result(one)


def _fields(own: predictor.Loaded, rows: int, batch: list[Question]) -> list[Fields]:
    data = predictor.of_tokens(own, [q.ids for q in batch], [q.types for q in batch])
    return predictor.fields_of(own, [q.texts for q in batch], data, rows)
