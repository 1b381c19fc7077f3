"""Batches for training and evaluation: padded arrays, and an iterator that resumes."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import files
from hypelora_jax.data import buckets as buckets_lib
from hypelora_jax.data import conditions
from hypelora_jax.data.conditions import Given
from hypelora_jax.data.read_ahead import ReadAhead
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokens import Encoded, Tokenizer
from hypelora_jax.errors import UserError

STATE = "position.json"  # file in a checkpoint with the state of the iterator
Edges = tuple[int, ...]
NumpyBatch = dict[str, np.ndarray]


class Dataset(NamedTuple):
    """N tokenised examples: `encoded`, and `label`, `soft` and `ids` as in `Table`.

    `condition` has the vectors that examples are conditioned on.
    """

    encoded: Encoded
    label: np.ndarray
    soft: np.ndarray | None
    ids: np.ndarray
    pad_id: int
    max_length: int | None = None  # longer texts were cut to this many tokens
    condition: Given | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example (N,)."""
        return np.asarray([len(x) for x in self.encoded.ids], np.int64)


def dataset(table: Table, tokenizer: Tokenizer, max_length: int) -> Dataset:
    """Tokenise a table; texts longer than max_length are cut (see `warn_of_cuts`)."""
    encoded = tokenizer.encode(table, max_length)
    condition = conditions.distinct(table.condition)
    own = (table.label, table.soft, table.ids, tokenizer.pad_id, max_length, condition)
    return Dataset(encoded, *own)


def take(data: Dataset, rows: np.ndarray) -> Dataset:
    """Return the dataset of some rows in the given order; it counts no cut texts."""
    ids, types = ([x[i] for i in rows] for x in data.encoded[:2])
    soft = None if data.soft is None else data.soft[rows]
    return data._replace(
        encoded=Encoded(ids, types, 0),
        label=data.label[rows],
        soft=soft,
        ids=data.ids[rows],
        condition=conditions.take(data.condition, rows),
    )


def warn_of_cuts(datasets: Iterable[Dataset], max_length: int) -> None:
    """Log one warning with the number of texts cut to max_length, if any."""
    datasets = list(datasets)
    cut = sum(data.encoded.truncated for data in datasets)
    warn_of_cut(cut, sum(len(data.ids) for data in datasets), max_length)


def warn_of_cut(cut: int, total: int, max_length: int) -> None:
    """Log one warning if some of `total` texts were cut to max_length."""
    if cut:
        logging.warning(
            "cut %d of %d texts to %d tokens (data.max_length)", cut, total, max_length
        )


def collate(
    data: Dataset,
    rows: np.ndarray,
    length: int,
    batch_size: int,
    soft: bool = False,
    own: np.ndarray | None = None,
    weight_N: np.ndarray | None = None,
) -> NumpyBatch:
    """Build one batch with the keys of `types.Batch`, and "index", the row numbers.

    Padding rows repeat the first row with weight 0, so that whatever is computed from
    them is finite.

    Args:
      data: the examples.
      rows: rows of `data`, at most `batch_size`.
      length: number of tokens T of every row.
      batch_size: rows of the whole batch, padding included.
      soft: use soft labels (B, Y) as "label".
      own: positions in the batch of the rows to return; None returns all. "index", for
        use on the host, always covers the whole batch; it is -1 for padding.
      weight_N: weight of each example of `data`; None gives each 1.

    Raises:
      UserError: `soft` is set and the source has no soft labels.
    """
    labels = _labels(data, soft)
    n = len(rows)
    full = np.concatenate([rows, np.full(batch_size - n, rows[0])])
    own = np.arange(batch_size) if own is None else own
    ids = np.full((len(own), length), data.pad_id, np.int32)
    types = np.zeros((len(own), length), np.int32)
    mask = np.zeros((len(own), length), bool)
    for i, row in enumerate(full[own]):
        tokens = data.encoded.ids[row]
        ids[i, : len(tokens)] = tokens
        types[i, : len(tokens)] = data.encoded.types[row]
        mask[i, : len(tokens)] = True
    real = np.arange(batch_size) < n
    weight = real if weight_N is None else real * weight_N[full]
    given = data.condition
    return {
        **({} if given is None else conditions.of_batch(given, full[own], batch_size)),
        "ids": ids,
        "mask": mask,
        "types": types,
        "label": labels[full[own]],
        "weight": weight[own].astype(np.float32),
        "index": np.where(real, full, -1).astype(np.int64),
    }


def _labels(data: Dataset, soft: bool) -> np.ndarray:
    if not soft:
        return data.label
    if data.soft is None:
        raise UserError(
            "soft labels are asked for, but this source has none; expected "
            "movie_reviews or synthetic as config.data.source, or "
            "config.loss.labels=hard"
        )
    return data.soft


class _Plan:
    """Random access to the batches (rows, T) of all epochs, fixed by (seed, i)."""

    def __init__(
        self, lengths: np.ndarray, edges: Edges, batch_size: int, seed: int, epochs: int
    ):
        self.steps = buckets_lib.steps_per_epoch(lengths, edges, batch_size)
        self._epochs = epochs
        self._of_epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: buckets_lib.plan(lengths, edges, batch_size, seed, epoch)
        )

    def __len__(self) -> int:
        return self.steps * self._epochs

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        epoch, step = divmod(i, self.steps)
        return self._of_epoch(epoch)[step]


class TrainIterator:
    """Iterator of training batches, whose state is saved in checkpoints.

    The state is one number, the same for all processes. Process 0 writes it to one
    file, so that a run can continue with another number of processes.
    """

    def __init__(self, batches: ReadAhead):
        self._batches = batches

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> NumpyBatch:
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
) -> TrainIterator:
    """Return an iterator of the batches of all epochs; its state is one number.

    Batch i depends only on (seed, i). Save and restore the state with `get_state` and
    `set_state`, or save the iterator itself in an orbax checkpoint. With several
    processes, each gets its `own` rows of every batch (`sharding.mesh.own_rows`), at
    the same T. `weight_N` weights the examples in the loss.

    Raises:
      UserError: `soft` is set and the source has no soft labels.
    """
    _labels(data, soft)  # raises here, not in the thread that reads ahead

    plan = _Plan(data.lengths, edges, batch_size, seed, num_epochs)

    def batch(i: int) -> NumpyBatch:
        return collate(data, *plan[i], batch_size, soft, own, weight_N)

    return TrainIterator(ReadAhead(len(plan), batch))


def eval_batches(
    data: Dataset,
    edges: Edges,
    batch_size: int,
    own: np.ndarray | None = None,
) -> Iterator[NumpyBatch]:
    """Yield batches with each example exactly once, bucket by bucket, in order.

    Examples longer than the last edge get one more bucket. With several processes, each
    gets its `own` rows of every batch, so that all see the same number of batches.
    """
    lengths = data.lengths
    edges = buckets_lib.cover(edges, lengths, data.max_length)
    for rows, length in buckets_lib.plan(lengths, edges, batch_size, seed=None):
        yield collate(data, rows, length, batch_size, own=own)


def describe(data: Dataset, edges: Edges, batch_size: int) -> str:
    """Return one line for logs: lengths, buckets, steps per epoch, share of padding."""
    lengths = data.lengths
    bucket = buckets_lib.bucket_of(lengths, edges)
    counts = np.bincount(bucket, minlength=len(edges))
    padded = np.asarray(edges)[bucket].sum()
    buckets = ", ".join(f"{e}: {c}" for e, c in zip(edges, counts, strict=True))
    return (
        f"{len(lengths)} examples of {lengths.mean():.1f} tokens (longest "
        f"{lengths.max()}), buckets {buckets}; "
        f"{buckets_lib.steps_per_epoch(lengths, edges, batch_size)} steps an epoch, "
        f"{1 - lengths.sum() / padded:.0%} padding"
    )
