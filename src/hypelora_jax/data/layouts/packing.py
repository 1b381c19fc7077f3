"""Packing: several examples in one row, so that a batch has hardly any padding.

Each example attends to its own tokens only, and its positions count from its own first
token, so its loss is the same as in a row of its own. A row is filled by best fit,
longest examples first. Which lengths go together is the same in every epoch, and so is
the number of steps; which examples have these lengths is drawn anew.
"""

from typing import NamedTuple

import numpy as np

from hypelora_jax.data.batches import Dataset, NumpyBatch, flat, labels_of
from hypelora_jax.errors import UserError

# A row of so many tokens spends as much time on attention as on all else (MiniLM, 2 CPU
# cores), because every token meets every other one of its row.
ATTENTION = 384
LONGEST = 2  # no row is longer than this many times the longest example
SHORTEST = 8  # tokens that `placed` counts a shorter example as, to bound P


class Packing(NamedTuple):
    """Shape of the batches: rows of a step, and tokens T of each row."""

    rows: int
    length: int


class Layout(NamedTuple):
    """Lengths of the N examples in the rows of an epoch, row after row.

    `first` has the place of each row's first example, and N at the end. A row has at
    most `most` examples; rows with more examples come first.
    """

    shape: Packing
    size_N: np.ndarray
    first: np.ndarray
    most: int

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return -(-(len(self.first) - 1) // self.shape.rows)

    @property
    def tokens(self) -> int:
        """Number of tokens of an epoch, padding included."""
        return self.steps * self.shape.rows * self.shape.length


def fit(lengths: np.ndarray, batch_size: int, multiple: int = 1) -> Packing:
    """Choose the shape that takes the least time, by its tokens and their attention.

    A step has as many rows as have about `batch_size` examples, a multiple of
    `multiple`.

    Raises:
      UserError: so many rows have far more than `batch_size` examples.
    """
    step = -(-int(np.max(lengths)) // 8) * 8
    found = []
    stride = max(step // 64 * 8, 8)  # about an eighth of the longest, so few are tried
    for length in range(step, LONGEST * step + 1, stride):
        full = len(layout(lengths, Packing(1, length)).first) - 1
        share = batch_size * full / len(lengths)
        rows = round(share / multiple) * multiple
        if rows:
            tokens = -(-full // rows) * rows * length
            found.append((tokens * (1 + length / ATTENTION), Packing(rows, length)))
        elif length == step:
            need = -(-multiple * len(lengths) // full)
            raise UserError(
                f"config.optim.batch_size is {batch_size}, and with data.packing "
                f"{share:.1f} rows hold that many examples, but the micro-batches and "
                f"devices divide {multiple} rows; expected a batch size of about {need}"
            )
    return min(found)[1]


def layout(lengths: np.ndarray, shape: Packing) -> Layout:
    """Fill rows with all lengths, longest first, each into the fullest row with room.

    Raises:
      ValueError: an example is longer than a row.
    """
    longest = int(np.max(lengths))
    if longest > shape.length:
        raise ValueError(
            f"an example has {longest} tokens, more than a row, {shape.length}"
        )
    # rows that are filled alike, by the number of tokens they have room for
    room: dict[int, list[tuple[list[int], int]]] = {}
    for size, left in zip(*_counted(lengths), strict=True):
        while left:
            space = min((n for n in room if n >= size), default=shape.length)
            begun, rows = room[space].pop() if space in room else ([], left)
            each = min(space // size, left)
            taken = min(rows, left // each)
            left -= taken * each
            after = space - each * size
            room.setdefault(after, []).append((begun + [size] * each, taken))
            if begun and rows > taken:
                room.setdefault(space, []).append((begun, rows - taken))
            if not room.get(space, True):
                del room[space]
    alike = [one for ones in room.values() for one in ones]
    alike.sort(key=lambda one: (-len(one[0]), one[0]))
    size_N = np.array([size for sizes, n in alike for _ in range(n) for size in sizes])
    counts = np.repeat([len(sizes) for sizes, _ in alike], [n for _, n in alike])
    return Layout(shape, size_N, np.append(0, np.cumsum(counts)), int(counts[0]))


def _counted(lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the distinct lengths, longest first, and how many examples have each."""
    sizes, counts = np.unique(lengths, return_counts=True)
    return sizes[::-1].tolist(), counts[::-1].tolist()


def plan(
    lengths: np.ndarray, layout: Layout, seed: int, epoch: int = 0
) -> list[list[np.ndarray]]:
    """Plan one epoch's batches, the examples of each row: each example once.

    (seed, epoch) draw the examples of each length and the rows of each batch. A batch
    has a row of each part of the rows, which are ordered by their numbers of examples,
    so that these sum to nearly the same in all batches. Some last rows may be empty.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = _dealt(lengths, layout, rng.permutation(len(lengths)))
    size = layout.shape.rows
    rows += [rows[0][:0]] * (layout.steps * size - len(rows))
    dealt = np.arange(len(rows)).reshape(size, layout.steps)
    return [[rows[i] for i in batch] for batch in rng.permuted(dealt, axis=1).T]


def _dealt(lengths: np.ndarray, layout: Layout, order: np.ndarray) -> list[np.ndarray]:
    """Return the examples of each row; those of one length are taken in an order."""
    example_N = np.empty_like(order)
    by_size = np.argsort(layout.size_N, kind="stable")
    example_N[by_size] = order[np.argsort(lengths[order], kind="stable")]
    return np.split(example_N, layout.first[1:-1])


def placed(lengths: np.ndarray, length: int) -> tuple[Layout, list[np.ndarray]]:
    """Fill rows of `length` tokens with all examples, for inference.

    Examples count as SHORTEST tokens at least, so that P, the most examples of a row,
    is the same for all batches.

    Raises:
      ValueError: an example is longer than a row.
    """
    counted = np.maximum(lengths, min(SHORTEST, length))
    found = layout(counted, Packing(1, length))
    rows = _dealt(counted, found, np.arange(len(lengths)))
    shape = Packing(len(rows), length)
    return found._replace(shape=shape, most=max(length // SHORTEST, 1)), rows


def describe(lengths: np.ndarray, layout: Layout) -> str:
    """Return one line for logs: lengths, rows, steps per epoch, share of padding."""
    rows, length = layout.shape
    return (
        f"{len(lengths)} examples of {lengths.mean():.1f} tokens (longest "
        f"{lengths.max()}), packed into rows of {length}, {rows} rows or about "
        f"{len(lengths) / layout.steps:.0f} examples a step; {layout.steps} steps an "
        f"epoch, {1 - lengths.sum() / layout.tokens:.1%} padding"
    )


def collate(
    data: Dataset,
    rows: list[np.ndarray],
    layout: Layout,
    soft: bool = False,
    own: np.ndarray | None = None,
    weight_N: np.ndarray | None = None,
) -> NumpyBatch:
    """Build one packed batch with the keys of `types.Batch`, and "index" (B, P).

    Args:
      data: the examples.
      rows: the examples of each row.
      layout: the layout that they come from.
      soft: use soft labels (B, P, Y) as "label".
      own: the rows of the batch to return; None returns all. "index", for use on the
        host, always covers the whole batch; it is -1 where there is no example.
      weight_N: weight of each example of `data`; None gives each 1.

    Raises:
      UserError: `soft` is set and the source has no soft labels.
    """
    index = np.full((len(rows), layout.most), -1, np.int64)
    real = np.arange(layout.most)[None] < np.array([len(x) for x in rows])[:, None]
    index[real] = np.concatenate(rows)
    mine = index if own is None else index[own]
    at, place = np.nonzero(mine >= 0)  # row and place of each example, in order
    tokens, types_N, size_N = flat(data, mine[at, place])
    size = np.zeros(mine.shape, np.int64)
    size[at, place] = size_N
    first = np.cumsum(size, axis=1) - size
    # where each token goes: its example's beginning, and its number within the example
    number = np.arange(len(tokens)) - np.repeat(np.cumsum(size_N) - size_N, size_N)
    to = np.repeat(at, size_N), np.repeat(first[at, place], size_N) + number
    shape = len(mine), layout.shape.length
    ids, types = np.full(shape, data.pad_id, np.int32), np.zeros(shape, np.int32)
    segment = np.zeros(shape, np.int32)
    ids[to], types[to], segment[to] = tokens, types_N, np.repeat(place + 1, size_N)
    weight = np.ones(len(data.ids)) if weight_N is None else weight_N
    return {
        "ids": ids,
        "mask": segment > 0,
        "types": types,
        "segment": segment,
        "first": np.where(mine >= 0, first, 0).astype(np.int32),
        "label": labels_of(data, soft)[mine],
        "weight": np.where(mine >= 0, weight[mine], 0).astype(np.float32),
        "index": index,
    }
