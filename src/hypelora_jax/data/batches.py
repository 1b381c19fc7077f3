"""Tokenised examples, and padded batches of them, each in one length bucket."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from hypelora_jax.data import buckets as buckets_lib
from hypelora_jax.data import conditions
from hypelora_jax.data.conditions import Given
from hypelora_jax.data.layouts import task_batches
from hypelora_jax.data.layouts.task_batches import Group, TaskArrays
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tables import take as take_rows
from hypelora_jax.data.tokens import Encoded, Tokenizer
from hypelora_jax.errors import UserError

Edges = tuple[int, ...]
NumpyBatch = dict[str, np.ndarray]


class Dataset(NamedTuple):
    """N tokenised examples: `encoded`, and `label`, `soft` and `ids` as in `Table`.

    `condition` has the vectors that examples are conditioned on. With a set of tasks,
    `task`, int32 (N,), is the index of each example's task, and `tasks` what the tasks
    give to batches.
    """

    encoded: Encoded
    label: np.ndarray
    soft: np.ndarray | None
    ids: np.ndarray
    pad_id: int
    max_length: int | None = None  # longer texts were cut to this many tokens
    condition: Given | None = None
    task: np.ndarray | None = None
    tasks: TaskArrays | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example (N,)."""
        return np.asarray([len(x) for x in self.encoded.ids], np.int64)


def dataset(
    table: Table,
    tokenizer: Tokenizer,
    max_length: int,
    tasks: TaskArrays | None = None,
) -> Dataset:
    """Tokenise a table; texts longer than max_length are cut (see `warn_of_cuts`).

    `tasks` is what the tasks of a set give to the batches of its tables.
    """
    encoded = _encoded(table, tokenizer, max_length)
    condition = conditions.distinct(table.condition)
    own = (table.label, table.soft, table.ids, tokenizer.pad_id, max_length, condition)
    return Dataset(encoded, *own, table.task, tasks)


def _encoded(table: Table, tokenizer: Tokenizer, max_length: int) -> Encoded:
    """Tokenise the texts; one that several tasks have is tokenised and held once."""
    if table.task is None:
        return tokenizer.encode(table, max_length)
    pairs = list(zip(table.text, table.text_b or table.text, strict=True))
    first = {pair: n for n, pair in reversed(list(enumerate(pairs)))}
    at = {n: i for i, n in enumerate(sorted(first.values()))}
    encoded = tokenizer.encode(take_rows(table, np.array(list(at), int)), max_length)
    where = [at[first[pair]] for pair in pairs]
    ids, types = ([x[i] for i in where] for x in encoded[:2])
    return Encoded(ids, types, encoded.truncated)


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
        task=None if data.task is None else data.task[rows],
    )


def warn_of_cuts(datasets: Iterable[Dataset], max_length: int) -> None:
    """Log one warning with the number of texts cut to max_length, if any."""
    datasets = list(datasets)
    cut = sum(data.encoded.truncated for data in datasets)
    # a text that several tasks have is held, and counted, once
    texts = sum(len({id(x) for x in data.encoded.ids}) for data in datasets)
    warn_of_cut(cut, texts, max_length)


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
    labels = labels_of(data, soft)
    n = len(rows)
    full = np.concatenate([rows, np.full(batch_size - n, rows[0])])
    own = np.arange(batch_size) if own is None else own
    tokens, types_N, size_B = flat(data, full[own])
    mask = np.arange(length)[None] < size_B[:, None]
    ids = np.full(mask.shape, data.pad_id, np.int32)
    types = np.zeros(mask.shape, np.int32)
    ids[mask], types[mask] = tokens, types_N  # by rows, as they are joined
    real = np.arange(batch_size) < n
    weight = real if weight_N is None else real * weight_N[full]
    given = data.condition
    return {
        **({} if given is None else conditions.of_batch(given, full[own], batch_size)),
        **_of_tasks(data, full[own], batch_size),
        "ids": ids,
        "mask": mask,
        "types": types,
        "label": labels[full[own]],
        "weight": weight[own].astype(np.float32),
        "index": np.where(real, full, -1).astype(np.int64),
    }


def _of_tasks(data: Dataset, rows: np.ndarray, batch_size: int) -> NumpyBatch:
    if data.task is None or data.tasks is None:
        return {}
    return task_batches.of_batch(data.tasks, data.task[rows], batch_size)


def collate_group(
    data: Dataset,
    group: Group,
    soft: bool = False,
    own: np.ndarray | None = None,
    weight_N: np.ndarray | None = None,
) -> NumpyBatch:
    """Build the batch of a training step with several tasks, as `collate` otherwise."""
    rows = (group.rows, group.length, len(group.rows), soft, own, weight_N)
    batch = collate(data._replace(tasks=None), *rows)
    arrays = data.tasks or TaskArrays({})
    return {**batch, **task_batches.of_group(arrays, group, own)}


def flat(data: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ids and types of some examples, each joined, and their lengths."""
    parts = [data.encoded.ids[row] for row in rows]
    types = [data.encoded.types[row] for row in rows]
    return (
        np.concatenate(parts),
        np.concatenate(types),
        np.array([len(x) for x in parts]),
    )


def labels_of(data: Dataset, soft: bool) -> np.ndarray:
    """Return the labels that are trained on.

    Raises:
      UserError: `soft` is set and the source has no soft labels.
    """
    if not soft:
        return data.label
    if data.soft is None:
        raise UserError(
            "soft labels are asked for, but this source has none; expected "
            "movie_reviews or synthetic as config.data.source, or "
            "config.loss.labels=hard"
        )
    return data.soft


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
    steps = -(-counts // batch_size)
    whole = batch_size * int(np.sum(steps * np.asarray(edges)))
    buckets = ", ".join(f"{e}: {c}" for e, c in zip(edges, counts, strict=True))
    return (
        f"{len(lengths)} examples of {lengths.mean():.1f} tokens (longest "
        f"{lengths.max()}), buckets {buckets}; "
        f"{steps.sum()} steps an epoch, "
        f"{1 - lengths.sum() / padded:.1%} padding, {1 - lengths.sum() / whole:.1%} "
        "with the empty rows of last batches"
    )
