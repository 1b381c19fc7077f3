"""Texts of a small grammar whose true class probabilities are known.

A text is two cue words among filler words. The first letter of a cue names the class
that it supports, and the rest says whether strongly or weakly. The log odds of a text
are the sum over its cues, and the label is drawn from them. The best reachable negative
log-likelihood is therefore the mean entropy, which is logged. `soft` has the true
probabilities.
"""

import numpy as np
from absl import logging

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data.tables import Splits, Table
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError

_ONSETS = "bdfgklmnprstvz"  # one for each class
_STRONG, _WEAK = ("onda", "indo"), ("asu", "uli")
_ODDS = {"strong": 2.5, "weak": 1.0}  # added to the log odds of the cue's class
_FILLERS = ("a", "e", "the", "one", "other", "which", "however")


def load(config: DataConfig, seed: int) -> tuple[Task, Splits]:
    """Draw the splits: `num_examples` in train, and a quarter in each other one.

    The other splits have at least 100 examples.

    Raises:
      UserError: there are more classes than letters in the grammar.
    """
    if config.num_classes > len(_ONSETS):
        raise UserError(
            f"config.data.num_classes is {config.num_classes}; expected 2 to "
            f"{len(_ONSETS)}, the letters of the synthetic grammar"
        )
    labels = tuple(f"class_{c}" for c in _ONSETS[: config.num_classes])
    rest = max(100, config.num_examples // 4)
    sizes = {"train": config.num_examples, "calibration": rest}
    sizes |= {"validation": rest, "test": rest}
    splits, first = Splits(), 0
    for salt, (name, size) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, salt])
        splits[name] = draw(rng, size, config.num_classes, first)
        first += size
        logging.info("synthetic %s: entropy %.4f", name, entropy(splits[name]))
    return Task("synthetic", "classification", labels, ("accuracy",), False), splits


def draw(rng: np.random.Generator, n: int, num_classes: int, first: int = 0) -> Table:
    """Draw n texts, and labels from their true class probabilities `soft`."""
    texts, odds = [], np.zeros((n, num_classes))
    for i in range(n):
        fillers = rng.integers(len(_FILLERS), size=rng.integers(0, 5))
        words = [_FILLERS[k] for k in fillers]
        for _ in range(2):
            c, strong = rng.integers(num_classes), rng.random() < 0.6
            odds[i, c] += _ODDS["strong" if strong else "weak"]
            ends = _STRONG if strong else _WEAK
            word = _ONSETS[c] + ends[rng.integers(len(ends))]
            words.insert(rng.integers(len(words) + 1), word)
        texts.append(" ".join(words))
    probs = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    label = (rng.random((n, 1)) > probs.cumsum(1)).sum(1).clip(max=num_classes - 1)
    ids = np.arange(first, first + n, dtype=np.int64)
    return Table(ids, texts, None, label.astype(np.int32), probs.astype(np.float32))


def entropy(table: Table) -> float:
    """Return the true probabilities' mean entropy in nats, the best reachable NLL."""
    assert table.soft is not None  # `draw` gives the true probabilities
    p = table.soft.astype(np.float64)
    return float(-(p * np.log(p)).sum(1).mean())
