"""Training batches: their shapes, and the iterator that a checkpoint resumes."""

import asyncio
import functools
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.data import buckets
from hypelora_jax.data.batches import (
    Dataset,
    Edges,
    NumpyBatch,
    collate,
    collate_group,
    labels_of,
)
from hypelora_jax.data.layouts import packing
from hypelora_jax.data.layouts.packing import Packing
from hypelora_jax.data.layouts.task_batches import TaskPlan

STATE = "position.json"  # file in a checkpoint with the state of the iterator


def shapes(
    lengths: np.ndarray,
    data: DataConfig,
    batch_size: int,
    multiple: int,
    record: Mapping[str, Any],
    epochs: float = 3.0,
) -> tuple[Edges, Packing | None]:
    """Return the lengths of the buckets, and the shape of packed batches if packed.

    A run that has begun keeps those of its record, unless its data no longer fit into
    them; `records.check_data` then finds others and says that the data has changed.

    Args:
      lengths: number of tokens of each example.
      data: whether texts are packed, and what they are cut to.
      batch_size: examples of a step.
      multiple: a multiple of this many packed rows can be divided among micro-batches
        and devices.
      record: that of the run, {} before it begins.
      epochs: how often the run reads each example, on average.

    Raises:
      UserError: so many rows have far more than `batch_size` examples.
    """
    longest = int(np.max(lengths, initial=0))
    edges = tuple(record.get("buckets", ()))
    if not edges or edges[-1] < longest:
        limits = (data.max_length, data.pad_to_max)
        edges = buckets.edges(lengths, batch_size, *limits, epochs)
    if not data.packing:
        return edges, None
    if "packing" in record and record["packing"][1] >= longest:
        return edges, Packing(*record["packing"])
    return edges, packing.fit(lengths, batch_size, multiple)


class _Plan:
    """Random access to the batches of all epochs: batch i is fixed by (seed, i)."""

    def __init__(self, steps: int, epochs: int, of_epoch: Callable[[int], list]):
        self._steps, self._epochs = steps, epochs
        self._of_epoch = functools.lru_cache(maxsize=2)(of_epoch)

    def __len__(self) -> int:
        return self._steps * self._epochs

    def __getitem__(self, i: int) -> Any:
        epoch, step = divmod(i, self._steps)
        return self._of_epoch(epoch)[step]


class ReadAhead:
    """Iterates over make(0), ..., make(count - 1), of which some are made ahead.

    The state is the number of items that were given out.

    Args:
      count: number of items.
      make: makes item i; it is called in order, in one thread.
      ahead: items made ahead.
    """

    def __init__(self, count: int, make: Callable[[int], Any], ahead: int = 8):
        self._count, self._make, self._ahead = count, make, ahead
        self._given = 0
        self._futures: deque[Future] = deque()
        self._thread = ThreadPoolExecutor(1, "data")

    def __next__(self) -> Any:
        self._fill()
        if not self._futures:
            raise StopIteration
        item = self._futures.popleft().result()
        self._given += 1
        self._fill()
        return item

    def _fill(self) -> None:
        first = self._given + len(self._futures)
        last = min(self._given + self._ahead, self._count)
        for i in range(first, last):
            self._futures.append(self._thread.submit(self._make, i))

    def get_state(self) -> dict[str, Any]:
        """Return the position as JSON values."""
        return {"next_index": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` returned."""
        while self._futures:
            self._futures.popleft().cancel()
        self._given = state["next_index"]


class TrainIterator:
    """Iterator of training batches, whose state is saved in checkpoints.

    The state is one number, the same for all processes. Process 0 writes it to one
    file, so that a run can continue with another number of processes.
    """

    def __init__(self, batches: ReadAhead):
        self._batches = batches

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """Return the position as JSON values."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` returned."""
        self._batches.set_state(state)

    async def save(self, directory: Any) -> Awaitable[None]:
        """Write the state into a checkpoint: orbax's StatefulCheckpointable."""
        state = files.to_json(self.get_state())

        async def write() -> None:
            folder = await directory.await_creation()
            if jax.process_index() == 0:
                await asyncio.to_thread((folder / STATE).write_text, state)

        return write()

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """Go to the position saved in a checkpoint."""

        async def read() -> None:
            file = epath.Path(directory) / STATE
            self.set_state(json.loads(await asyncio.to_thread(file.read_text)))

        return read()


def train_iterator(
    data: Dataset,
    edges: Edges,
    batch_size: int,
    seed: int,
    num_epochs: int,
    soft: bool = False,
    own: np.ndarray | None = None,
    weight_N: np.ndarray | None = None,
    packed: Packing | None = None,
    tasks: TaskPlan | None = None,
    place: Callable[[NumpyBatch], Any] = lambda batch: batch,
) -> TrainIterator:
    """Return an iterator of the batches of all epochs; its state is one number.

    Batch i depends only on (seed, i). `get_state` and `set_state` save and restore the
    state, or an orbax checkpoint does. A thread makes batches ahead, so that a step
    need not wait for its data.

    Args:
      data: the examples.
      edges: lengths T of the buckets.
      batch_size: rows of a batch, padding included.
      seed: decides the order of the examples.
      num_epochs: how often each example comes.
      soft: use soft labels (B, Y) as "label".
      own: with several processes, the rows of every batch that are this one's
        (`sharding.mesh.own_rows`); T is the same in all.
      weight_N: weights the examples in the loss.
      packed: shape of packed batches, in place of `edges` and `batch_size`.
      tasks: the steps of a set of tasks, in place of the three.
      place: what the thread does with a batch, such as placing it on the devices; the
        iterator gives its result.

    Raises:
      UserError: `soft` is set and the source has no soft labels.
    """
    labels_of(data, soft)  # raises here, not in the thread that makes batches
    layout = _layout(data, edges, batch_size, seed, packed, tasks)
    plan = _Plan(layout.steps, num_epochs, layout.of_epoch)

    def item(i: int) -> Any:
        return place(layout.collate(plan[i], soft, own, weight_N))

    return TrainIterator(ReadAhead(len(plan), item))


class _Layout(NamedTuple):
    """Batches of one kind: how many make an epoch, their plan, and how one is made."""

    steps: int
    of_epoch: Callable[[int], list]
    collate: Callable[..., NumpyBatch]  # of an item of the plan, soft, own and weight_N


def _layout(
    data: Dataset,
    edges: Edges,
    batch_size: int,
    seed: int,
    packed: Packing | None,
    tasks: TaskPlan | None,
) -> _Layout:
    lengths, of = data.lengths, functools.partial
    if tasks is not None:
        return _Layout(tasks.steps, of(tasks.epoch, seed), of(collate_group, data))
    if packed is not None:
        rows = packing.layout(lengths, packed)
        of_epoch = of(packing.plan, lengths, rows, seed)
        return _Layout(
            rows.steps,
            of_epoch,
            lambda item, *more: packing.collate(data, item, rows, *more),
        )
    return _Layout(
        buckets.steps_per_epoch(lengths, edges, batch_size),
        of(buckets.plan, lengths, edges, batch_size, seed),
        lambda item, *more: collate(data, item[0], item[1], batch_size, *more),
    )
