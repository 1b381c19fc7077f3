"""Balanced draws of sentences for an attribute and its negation."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .attributes import Attribute, Sentence

# Rows of an attribute both of whose forms train, and of one with a form that does not.
# Training evaluates all of them, so those that train have few.
SIZES = {"train": 600, "calibration": 24, "validation": 24, "test": 64}
HELD_OUT_SIZES = SIZES | {"validation": 32, "test": 160}
LEAST = 400  # sentences with the attribute, and without it
TEST_SHARE = 0.15  # of them that must be in test

Pools = Mapping[str, Sequence[Sentence]]  # the sentences of each split


class Draw(NamedTuple):
    """Sentences with their labels by split, half of them True, in a random order.

    `counts` are the sentences of all splits with and without the attribute.
    """

    rows: dict[str, list[tuple[Sentence, bool]]]
    counts: tuple[int, int]

    def attainable(self, polarity: int) -> dict[str, int]:
        """Return how many sentences could have each label in a task."""
        yes, no = self.counts[::polarity]
        return {"yes": yes, "no": no}


def draw(
    attribute: Attribute,
    pools: Pools,
    seed: int,
    least: int = LEAST,
    sizes: Mapping[str, int] = SIZES,
) -> Draw | None:
    """Draw the sentences of an attribute, or return None if there are too few.

    Other attributes do not change the draw. A split has fewer rows than `sizes` if the
    rarer class has fewer sentences than half of that.

    Args:
      least: fewest sentences of a class; test needs TEST_SHARE of it.
    """
    rng = np.random.default_rng([seed, zlib.crc32(attribute.name.encode())])
    rows, total, in_test = {}, np.zeros(2, int), 0
    for split, pool in pools.items():
        label = np.array([attribute.holds(s) for s in pool], bool)
        classes = [np.flatnonzero(label), np.flatnonzero(~label)]
        counts = [len(c) for c in classes]
        total += counts
        in_test = min(counts) if split == "test" else in_test
        n = min(sizes[split] // 2, *counts)
        both = np.concatenate([rng.permutation(c)[:n] for c in classes])
        rows[split] = [(pool[i], bool(label[i])) for i in rng.permutation(both)]
    if total.min() < least or in_test < TEST_SHARE * least:
        return None
    return Draw(rows, (int(total[0]), int(total[1])))


def records(attribute: Attribute, polarity: int, own: Draw) -> dict[str, list[dict]]:
    """Return the rows of a task's files; those of both polarities are aligned.

    A row has `id`, `text` and `label`. It has `share`, the share of raters who say yes,
    if raters decide, and `value`, which is compared with a threshold, if there is one.
    """
    return {
        split: [_record(attribute, polarity, s, yes) for s, yes in rows]
        for split, rows in own.rows.items()
    }


def _record(attribute: Attribute, polarity: int, s: Sentence, yes: bool) -> dict:
    label = "yes" if yes == (polarity > 0) else "no"
    out: dict[str, Any] = {"id": s.id, "text": s.text, "label": label}
    if attribute.share is not None:
        share = attribute.share(s)
        out["share"] = round(share if polarity > 0 else 1 - share, 4)
    if attribute.value is not None:
        out["value"] = attribute.value(s)
    return out
