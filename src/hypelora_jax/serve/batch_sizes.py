"""The numbers of rows that are compiled, and which of them a batch gets."""

import numpy as np

from hypelora_jax.data.layouts.packing import placed

# Two costs count as equal within this factor. They are measured at the start, when the
# machine may be busy, and larger batches need less time per text for threads and JSON.
TOLERANCE = 1.3


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return the batch sizes to compile: 1, 4, 16, ... and `most`."""
    sizes = {4**k for k in range(most.bit_length()) if 4**k < most}
    return tuple(sorted(sizes | {most}))


def best_rows(seconds: dict[tuple[int, int], float], edge: int, waiting: int) -> int:
    """Return the rows of the largest batch whose cost per text is about the lowest.

    `seconds` is the time of a batch by (rows, T), and `edge` the length T. If more rows
    cost no more time, the batch has room for all `waiting` texts. If every row costs
    time, as on a CPU, it has few padding rows.
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


def best_packed(
    seconds: dict[tuple[int, int], float], edge: int, lengths: np.ndarray
) -> tuple[int, int]:
    """Return the rows of the next packed batch, and how many of the texts it takes.

    `lengths` are those of the waiting texts in tokens, at most `edge`, oldest first.
    """
    n = len(lengths)
    needed = len(placed(lengths, edge)[1])
    rows = best_rows(seconds, edge, needed)
    while needed > rows:
        n -= 1
        needed = len(placed(lengths[:n], edge)[1])
    return rows, n
