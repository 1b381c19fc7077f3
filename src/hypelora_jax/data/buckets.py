"""Length buckets, which set the lengths T and so how often a step is compiled."""

import numpy as np

MAX_BUCKETS = 5  # each costs a compilation of the steps, about 5 s on a CPU
# A bucket must save this many padding tokens per epoch to be worth its compilation: two
# steps of 5 s at 2,600 tokens/s (MiniLM, 2 cores), over three epochs.
MIN_SAVING = 8192
_FIRST = 8


def _ladder(top: int) -> list[int]:
    """Return 8, 12, 16, 24, 32, 48, ... up to the first that is at least `top`."""
    out = [_FIRST]
    while out[-1] < top:
        out.append(
            out[-1] * 3 // 2 if out[-1] & (out[-1] - 1) == 0 else out[-1] // 3 * 4
        )
    return out


def edges(
    lengths: np.ndarray, batch_size: int, max_length: int, pad_to_max: bool = False
) -> tuple[int, ...]:
    """Choose the lengths T of the buckets, ascending; the longest example fits.

    It starts from a ladder of lengths. It drops edges while there are more than 5, or a
    bucket has less than two batches, or an edge saves less time than its compilation
    costs. The edge whose removal adds the least padding is dropped first.
    """
    if pad_to_max or not len(lengths):
        return (max_length,)
    need = int(np.max(lengths))
    last = max(min(-(-need // 8) * 8, max_length), need)
    out = [edge for edge in _ladder(need) if edge < last] + [last]
    while len(out) > 1:
        counts = np.bincount(np.searchsorted(out, lengths), minlength=len(out))
        costs = counts[:-1] * np.diff(out)
        small = np.flatnonzero(counts[:-1] < 2 * batch_size)
        drop = int(small[0]) if len(small) else int(np.argmin(costs))
        if not len(small) and len(out) <= MAX_BUCKETS and costs[drop] >= MIN_SAVING:
            break
        del out[drop]
    return tuple(out)


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
