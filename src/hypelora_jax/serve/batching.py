"""Batching of questions that arrive one by one; a batch has one length T of its rows.

Each caller awaits a future. One thread runs the model; while it is busy, questions
collect in groups by (lane, T), and the group with the oldest question goes next. A lane
is a bank, whose adapters share batches, or one adapter that is in no bank. An idle
service waits a window of some milliseconds for more questions before it answers. Where
the predictor packs, short texts of all lengths wait together, and several share a row.
Another thread embeds the descriptions of new tasks, so that others need not wait.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.inference.answers import Fields
from hypelora_jax.inference.asked_tasks import AskedTask
from hypelora_jax.inference.bank import Bank, Entry
from hypelora_jax.inference.predictor import (
    Predictor,
    batch_answers,
    token_dataset,
    tokenise,
)
from hypelora_jax.inference.task_adapters import TaskAdapters
from hypelora_jax.serve.adapter_pool import AdapterPool, Entries
from hypelora_jax.serve.batch_sizes import best_packed, best_rows
from hypelora_jax.serve.meters import Meters
from hypelora_jax.train.divergence import NotFinite

Lane = Bank | str  # str: name of an adapter that is in no bank
Key = tuple[Lane, int]  # lane, T of the bucket
Seconds = dict[Lane, dict[tuple[int, int], float]]  # by lane, then by (rows, T)


class Full(Exception):
    """The queue is full."""


class Query(NamedTuple):
    """A checked question: its texts, and its vector or task if the run reads one."""

    texts: tuple[str, ...]
    condition: np.ndarray | None = None
    asked: AskedTask | None = None


class Chosen(NamedTuple):
    """The adapter that a caller chose; it answers even after it has left the pool."""

    name: str
    predictor: Predictor
    entry: Entry | None  # in a bank; None if it is in none

    @property
    def lane(self) -> Lane:
        """Where its texts wait."""
        return self.name if self.entry is None else self.entry.bank


class Pending(NamedTuple):
    """A tokenised text in the queue since time `since` (time.monotonic, seconds)."""

    adapter: Chosen
    query: Query
    ids: np.ndarray
    types: np.ndarray
    answer: "asyncio.Future[Fields]"
    since: float


class Batcher:
    """The queue and the threads of a service; use it from one event loop only."""

    def __init__(
        self,
        pool: AdapterPool,
        seconds: Seconds,
        meters: Meters,
        window: float = 0.002,
        max_waiting: int = 1024,
        entries: Entries | None = None,
        makers: Mapping[str, TaskAdapters] = {},  # noqa: B006 (only read)
    ):
        """Create the queue; answering starts with `async with`.

        Args:
          pool: the adapters by name; `add` and `remove` change it.
          seconds: the result of `warm` for each lane.
          meters: counts of the service.
          window: seconds that a text waits for others.
          max_waiting: how many texts may be without an answer.
          entries: those of the adapters that are in a bank.
          makers: those of the runs that make an adapter for each task.
        """
        self._pool, self._seconds, self._meters = pool, seconds, meters
        self._window, self._max_waiting = window, max_waiting
        self._entries: Entries = {} if entries is None else entries
        self._makers = dict(makers)
        sizes = {lane: [rows for rows, _ in own] for lane, own in seconds.items()}
        self._most = {lane: max(rows) for lane, rows in sizes.items()}
        self._groups: dict[Key, deque[Pending]] = {}
        self._waiting = 0  # texts without an answer
        self._changed = asyncio.Event()
        names = ("model", "tokens", "descriptions")
        self._threads = [ThreadPoolExecutor(1, name) for name in names]
        self._model, self._tokens, self._descriptions = self._threads
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batcher":
        """Start answering."""
        self._work = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: Any) -> None:
        """Stop, after all threads have finished their work."""
        if self._work is not None:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work
        for thread in self._threads:
            thread.shutdown()

    async def add(self, name: str, predictor: Predictor, bank: Bank) -> None:
        """Add an adapter to the pool and to a bank, or replace the one of that name."""
        loop = asyncio.get_running_loop()
        # its factors are computed in the thread of the model: two programs that
        # exchange data between devices must not run at the same time
        entry = await loop.run_in_executor(self._model, bank.entry, predictor)
        self._pool[name], self._entries[name] = entry.predictor, entry

    def remove(self, name: str) -> None:
        """Remove an adapter; texts that wait for it are still answered."""
        del self._pool[name]
        self._entries.pop(name, None)
        self._makers.pop(name, None)

    def ask(self, name: str, queries: Sequence[Query]) -> Awaitable[list[Fields]]:
        """Answer questions with the adapter that has this name now, in their order.

        Raises:
          Full: too many texts are waiting.
          NotFinite: the model's outputs for a text are NaN or infinite.
        """
        adapter = Chosen(name, self._pool[name], self._entries.get(name))
        return self._ask(adapter, self._makers.get(name), queries)

    async def _ask(
        self, adapter: Chosen, maker: TaskAdapters | None, queries: Sequence[Query]
    ) -> list[Fields]:
        if self._waiting + len(queries) > self._max_waiting:
            raise Full
        self._count(len(queries))
        try:
            adapters = [adapter] * len(queries)
            if maker is not None:
                adapters = [await self._made(adapter, maker, one) for one in queries]
            encoded = await asyncio.get_running_loop().run_in_executor(
                self._tokens, tokenise, adapter.predictor, [q.texts for q in queries]
            )
            self._meters.cut += encoded.truncated
            rows = zip(adapters, queries, encoded.ids, encoded.types, strict=True)
            futures = [self._put(*row) for row in rows]
            return list(await asyncio.gather(*futures))
        finally:
            self._count(-len(queries))

    async def _made(self, adapter: Chosen, maker: TaskAdapters, query: Query) -> Chosen:
        """Return the adapter of a question's task; only a new one takes its time."""
        assert query.asked is not None  # every question of such a run says its task
        entry = maker.known(query.asked)
        if entry is None:
            entry = await asyncio.get_running_loop().run_in_executor(
                self._descriptions, maker.entry, query.asked
            )
        return adapter._replace(predictor=entry.predictor, entry=entry)

    def _count(self, texts: int) -> None:
        self._waiting += texts
        self._meters.waiting = self._waiting

    def _put(
        self,
        adapter: Chosen,
        query: Query,
        ids: np.ndarray,
        types: np.ndarray,
    ) -> "asyncio.Future[Fields]":
        edges, packs = adapter.predictor.edges, adapter.predictor.packs
        edge = edges[int(np.searchsorted(edges, len(ids)))]
        key = (adapter.lane, max(edge, packs))  # what is packed waits together
        answer = asyncio.get_running_loop().create_future()
        group = self._groups.setdefault(key, deque())
        group.append(Pending(adapter, query, ids, types, answer, time.monotonic()))
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
            ready, rest = _fitting(key[0], self._groups.pop(key))
            rows, n = self._size(key, ready)
            if left := sorted([*ready[n:], *rest], key=lambda one: one.since):
                self._groups[key] = deque(left)
            await self._answer(key, rows, ready[:n])

    def _size(self, key: Key, ready: Sequence[Pending]) -> tuple[int, int]:
        """Return the rows of the next batch, and how many texts it takes at most."""
        lane, edge = key
        if ready[0].adapter.predictor.packs == edge:
            lengths = [len(one.ids) for one in ready[: self._most[lane]]]
            return best_packed(self._seconds[lane], edge, np.array(lengths))
        rows = best_rows(self._seconds[lane], edge, len(ready))
        return rows, rows

    async def _answer(self, key: Key, rows: int, batch: list[Pending]) -> None:
        loop = asyncio.get_running_loop()
        own = key[0] if isinstance(key[0], Bank) else batch[0].adapter.predictor
        job = loop.run_in_executor(self._model, _fields, own, rows, batch)
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
        self._meters.saw_batch(Counter(one.adapter.name for one in batch), rows)
        for pending, one in zip(batch, fields, strict=True):
            if not pending.answer.done():  # the caller may have left
                pending.answer.set_result(one)


def _fail(batch: list[Pending], error: Exception) -> None:
    for pending in batch:
        if not pending.answer.done():  # the caller may have left
            pending.answer.set_exception(error)


def _fitting(
    lane: Lane, group: Sequence[Pending]
) -> tuple[list[Pending], list[Pending]]:
    """Divide waiting texts into those that may share a batch with the oldest, and rest.

    A batch has at most as many adapters as the bank has slots: those that waited most.
    """
    if not isinstance(lane, Bank):
        return list(group), []
    entries = [*dict.fromkeys(one.adapter.entry for one in group)]
    chosen = set(entries[: lane.slots])
    ready = [one for one in group if one.adapter.entry in chosen]
    return ready, [one for one in group if one.adapter.entry not in chosen]


def _fields(own: Bank | Predictor, rows: int, batch: list[Pending]) -> list[Fields]:
    texts = [q.query.texts for q in batch]
    tokens = [q.ids for q in batch], [q.types for q in batch]
    if isinstance(own, Bank):
        entries = [q.adapter.entry for q in batch if q.adapter.entry is not None]
        data = token_dataset(batch[0].adapter.predictor, *tokens)
        return own.answer(entries, texts, data, rows)
    given = None if own.vectors is None else [q.query.condition for q in batch]
    data = token_dataset(own, *tokens, given)
    return batch_answers(own, texts, data, rows)
