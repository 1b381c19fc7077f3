"""Length buckets, which set the lengths T and so how often a step is compiled."""

import numpy as np

MAX_BUCKETS = 8
TRIED = 512  # lengths that are tried as edges; twice as many take four times as long
STEP_COMPILATION = 5.0  # seconds to compile a step for one length, on 2 CPU cores
TOKENS_PER_SECOND = 2600.0  # of training MiniLM there, padding included
# Padding tokens that a bucket must save in a run: the time to compile two steps for it,
# of training and of evaluation.
MIN_SAVING = 2 * STEP_COMPILATION * TOKENS_PER_SECOND


def edges(
    lengths: np.ndarray,
    batch_size: int,
    max_length: int,
    pad_to_max: bool = False,
    epochs: float = 3.0,
) -> tuple[int, ...]:
    """Choose the lengths T of the buckets, ascending; the longest example fits.

    No other choice of at most MAX_BUCKETS lengths has a smaller sum of the tokens of an
    epoch, padding tokens and padding rows included, and of MIN_SAVING / `epochs` for
    each bucket.
    The last length is a multiple of 8 where max_length allows, so that somewhat longer
    texts of other splits fit as well.
    """
    if pad_to_max or not len(lengths):
        return (max_length,)
    need = int(np.max(lengths))
    last = max(min(-(-need // 8) * 8, max_length), need)
    # an edge that is no example's length could be lowered to one; of very long examples
    # only some lengths are tried. Entry 0 is no edge.
    step = -(-last // TRIED)
    tried = -(-lengths // step) * step
    at = np.append(np.unique(tried[tried < last]), last)
    below = np.searchsorted(np.sort(lengths), at, side="right")
    at, below = np.insert(at, 0, 0), np.insert(below, 0, 0)

    def tokens(end: int) -> np.ndarray:
        """Tokens of a bucket that ends at `at[end]`, for each beginning before it."""
        batches = -(-(below[end] - below[:end]) // batch_size)
        return batches * batch_size * at[end]

    # least cost of the examples up to each edge with k buckets, and where the last of
    # these buckets begins; rows are k = 1, 2, ...
    cost, begin = [np.append(0, [np.inf] * (len(at) - 1))], []
    for _ in range(min(MAX_BUCKETS, len(at) - 1)):
        sums = [cost[-1][:end] + tokens(end) for end in range(1, len(at))]
        begin.append([0, *(int(np.argmin(x)) for x in sums)])
        cost.append(np.array([np.inf, *(np.min(x) for x in sums)]))
    wholes = [row[-1] + k * MIN_SAVING / epochs for k, row in enumerate(cost)]
    out, end = [], len(at) - 1
    for k in range(int(np.argmin(wholes)), 0, -1):
        out.append(int(at[end]))
        end = begin[k - 1][end]
    return tuple(reversed(out))


def cover(
    edges: tuple[int, ...], lengths: np.ndarray, max_length: int | None = None
) -> tuple[int, ...]:
    """Return the edges, plus one more if an example is longer than the last.

    The new edge is a multiple of 8 but at most `max_length`, the length that texts were
    cut to, because a model may have no positions beyond it.
    """
    need = int(np.max(lengths, initial=0))
    if need <= edges[-1]:
        return edges
    rounded = -(-need // 8) * 8
    return (*edges, max(need, min(rounded, max_length or rounded)))


def extended(edges: tuple[int, ...], max_length: int) -> tuple[int, ...]:
    """Extend the edges by doubling up to max_length, so that any text fits.

    Unlike `cover`, this does not need the lengths of the examples.
    """
    out = list(edges)
    while out[-1] < max_length:
        out.append(min(2 * out[-1], max_length))
    return tuple(out)


def bucket_of(lengths: np.ndarray, edges: tuple[int, ...]) -> np.ndarray:
    """Return each example's bucket index: the first edge that is at least its length.

    Raises:
      ValueError: an example is longer than the last edge.
    """
    longest = int(np.max(lengths, initial=0))
    if longest > edges[-1]:
        raise ValueError(
            f"an example has {longest} tokens, more than the last edge of the "
            f"buckets, {edges[-1]}"
        )
    return np.searchsorted(edges, lengths)


def steps_per_epoch(
    lengths: np.ndarray, edges: tuple[int, ...], batch_size: int
) -> int:
    """Return the number of batches per epoch, which is the same in every epoch."""
    counts = np.bincount(bucket_of(lengths, edges), minlength=len(edges))
    return int(np.sum(-(-counts // batch_size)))


def plan(
    lengths: np.ndarray,
    edges: tuple[int, ...],
    batch_size: int,
    seed: int | None,
    epoch: int = 0,
) -> list[tuple[np.ndarray, int]]:
    """Plan one epoch's batches (rows, T): each example once, each batch in one bucket.

    Rows within a bucket and the order of batches are shuffled by (seed, epoch); seed
    None keeps both in order. A bucket's last batch may have fewer rows.
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    bucket = bucket_of(lengths, edges)
    out = []
    for b, edge in enumerate(edges):
        rows = np.flatnonzero(bucket == b)
        if rng is not None:
            rows = rng.permutation(rows)
        starts = range(0, len(rows), batch_size)
        out += [(rows[i : i + batch_size], edge) for i in starts]
    if rng is None:
        return out
    return [out[i] for i in rng.permutation(len(out))]
