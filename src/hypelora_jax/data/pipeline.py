"""Batches for training and evaluation: padded arrays, and an iterator that resumes."""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import logging

from hypelora_jax.data import bucketing
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokenize import Encoded, Tokenizer
from hypelora_jax.types import UserError

Edges = tuple[int, ...]
NumpyBatch = dict[str, np.ndarray]


class Dataset(NamedTuple):
    """N tokenised examples: `encoded`, and `label`, `soft` and `ids` as in `Table`."""

    encoded: Encoded
    label: np.ndarray
    soft: np.ndarray | None
    ids: np.ndarray
    pad_id: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example (N,)."""
        return np.asarray([len(x) for x in self.encoded.ids], np.int64)


def dataset(table: Table, tokenizer: Tokenizer, max_length: int) -> Dataset:
    """A table, tokenised; texts longer than max_length are cut (`warn_of_cuts`)."""
    encoded = tokenizer.encode(table, max_length)
    return Dataset(encoded, table.label, table.soft, table.ids, tokenizer.pad_id)


def warn_of_cuts(datasets: Iterable[Dataset], max_length: int) -> None:
    """One warning line that counts the texts cut to max_length, if any."""
    datasets = list(datasets)
    cut = sum(data.encoded.truncated for data in datasets)
    warn_of_cut(cut, sum(len(data.ids) for data in datasets), max_length)


def warn_of_cut(cut: int, total: int, max_length: int) -> None:
    """One warning line where texts were cut to max_length, if any were."""
    if cut:
        logging.warning(
            "cut %d of %d texts to %d tokens (data.max_length)", cut, total, max_length
        )


def collate(
    data: Dataset, rows: np.ndarray, length: int, batch_size: int, soft: bool = False
) -> NumpyBatch:
    """One batch of the keys in `types.Batch`, and "index": row numbers, -1 for padding.

    Padding rows repeat the first row with weight 0, so that whatever is computed from
    them is finite. `soft` gives soft labels (B, Y). "index" is for the host only.

    Raises:
      UserError: soft labels are asked for and the source has none.
    """
    _check_soft(data, soft)
    n = len(rows)
    full = np.concatenate([rows, np.full(batch_size - n, rows[0])])
    ids = np.full((batch_size, length), data.pad_id, np.int32)
    types = np.zeros((batch_size, length), np.int32)
    mask = np.zeros((batch_size, length), bool)
    for i, row in enumerate(full):
        tokens = data.encoded.ids[row]
        ids[i, : len(tokens)] = tokens
        types[i, : len(tokens)] = data.encoded.types[row]
        mask[i, : len(tokens)] = True
    real = np.arange(batch_size) < n
    return {
        "ids": ids,
        "mask": mask,
        "types": types,
        "label": (data.soft if soft else data.label)[full],
        "weight": real.astype(np.float32),
        "index": np.where(real, full, -1).astype(np.int64),
    }


def _check_soft(data: Dataset, soft: bool) -> None:
    if soft and data.soft is None:
        raise UserError(
            "soft labels are asked for and this source has none; wanted movie_reviews "
            "or synthetic as config.data.source, or config.loss.labels=hard"
        )


class _Plan:
    """Random access to the batches (rows, T) of all epochs: (seed, i) decides."""

    def __init__(
        self, lengths: np.ndarray, edges: Edges, batch_size: int, seed: int, epochs: int
    ):
        self.steps = bucketing.steps_per_epoch(lengths, edges, batch_size)
        self._epochs = epochs
        self._of_epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: bucketing.plan(lengths, edges, batch_size, seed, epoch)
        )

    def __len__(self) -> int:
        return self.steps * self._epochs

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        epoch, step = divmod(i, self.steps)
        return self._of_epoch(epoch)[step]


def train_iterator(
    data: Dataset,
    edges: Edges,
    batch_size: int,
    seed: int,
    num_epochs: int,
    process_index: int = 0,
    process_count: int = 1,
    soft: bool = False,
) -> grain.DatasetIterator:
    """Iterator of the batches of all epochs; its state is one number.

    Batch i depends on (seed, i) alone. The state goes through `get_state` and
    `set_state`, or the iterator into an orbax checkpoint. Of several processes each
    gets its contiguous share of every batch's rows, at the same T.

    Raises:
      UserError: the processes do not divide the batch, or soft labels are asked for
        and there are none: here, not in the thread that reads ahead.
    """
    _check_soft(data, soft)
    local = _share(batch_size, process_index, process_count)

    def to_batch(rows_and_length: tuple[np.ndarray, int]) -> NumpyBatch:
        batch = collate(data, *rows_and_length, batch_size, soft)
        return {name: x[local] for name, x in batch.items()}

    plan = _Plan(data.lengths, edges, batch_size, seed, num_epochs)
    # One thread is enough: a batch takes well under a millisecond.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    source = grain.MapDataset.source(plan).map(to_batch)
    return iter(source.to_iter_dataset(options))


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """Rows of a batch that belong to one process."""
    if batch_size % process_count:
        raise UserError(
            f"config.optim.batch_size is {batch_size} for {process_count} processes; "
            "wanted a multiple of their number"
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def eval_batches(
    data: Dataset,
    edges: Edges,
    batch_size: int,
    soft: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[NumpyBatch]:
    """Batches that hold each example exactly once, bucket by bucket, in order.

    An example longer than the last edge gets one more bucket. Of several processes each
    gets its share of every batch's rows, so all see the same number of batches.
    """
    local = _share(batch_size, process_index, process_count)
    lengths = data.lengths
    edges = bucketing.cover(edges, lengths)
    for rows, length in bucketing.plan(lengths, edges, batch_size, seed=None):
        batch = collate(data, rows, length, batch_size, soft)
        yield {name: x[local] for name, x in batch.items()}


def describe(data: Dataset, edges: Edges, batch_size: int) -> str:
    """One line for logs: lengths, buckets, steps an epoch, and how much is padding."""
    lengths = data.lengths
    bucket = bucketing.bucket_of(lengths, edges)
    counts = np.bincount(bucket, minlength=len(edges))
    padded = np.asarray(edges)[bucket].sum()
    buckets = ", ".join(f"{e}: {c}" for e, c in zip(edges, counts, strict=True))
    return (
        f"{len(lengths)} examples of {lengths.mean():.1f} tokens (longest "
        f"{lengths.max()}), buckets {buckets}; "
        f"{bucketing.steps_per_epoch(lengths, edges, batch_size)} steps an epoch, "
        f"{1 - lengths.sum() / padded:.0%} padding"
    )
