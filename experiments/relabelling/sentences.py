"""The sentences of the four rated domains that MiniLM reads whole, and their splits."""

import json
import re
from collections.abc import Sequence

import numpy as np
import tokenizers

from hypelora_jax.data.sources import movie_reviews
from hypelora_jax.interop import downloads

from .attributes import Sentence

PIECES = 32  # most word pieces, with [CLS] and [SEP]
# Shares of the sentences. Test is large, so that rare attributes have rows enough.
SPLITS = {"train": 0.58, "calibration": 0.06, "validation": 0.12, "test": 0.24}


def read() -> list[Sentence]:
    """Return the sentences of at most 32 word pieces; of equal ones, the first.

    Sentences are equal if they have the same letters and digits, whatever their case.

    Raises:
      UserError: the sentences or MiniLM's tokenizer are missing and cannot be fetched.
    """
    folder = movie_reviews.prepare()
    rows = []
    for domain in movie_reviews.DOMAINS:
        lines = (folder / f"{domain}.jsonl").read_text("utf-8").split("\n")
        rows += [(domain, json.loads(line)) for line in lines if line]
    inner = tokenizers.Tokenizer.from_file(str(downloads.minilm() / "tokenizer.json"))
    inner.no_truncation()
    inner.no_padding()
    encoded = inner.encode_batch([row["text"] for _, row in rows])
    out: dict[str, Sentence] = {}
    for (domain, row), own in zip(rows, encoded, strict=True):
        key = "".join(re.findall(r"\w+", row["text"].lower()))
        if len(own.ids) <= PIECES and key not in out:
            out[key] = _sentence(len(out), domain, row, len(own.ids))
    return list(out.values())


def _sentence(number: int, domain: str, row: dict, pieces: int) -> Sentence:
    ratings, text = row["ratings"], row["text"]
    mean, spread = float(np.mean(ratings)), float(np.std(ratings))
    words = len(text.split())
    return Sentence(number, domain, text, tuple(ratings), mean, spread, words, pieces)


def splits_of(sentences: Sequence[Sentence], seed: int) -> dict[int, str]:
    """Return the split of each sentence, by its id; it is the same for all tasks."""
    order = np.random.default_rng([seed, len(sentences)]).permutation(len(sentences))
    ends = np.round(np.cumsum(list(SPLITS.values())) * len(order)).astype(int)
    parts = np.split(order, ends[:-1])
    return {
        sentences[i].id: name
        for name, part in zip(SPLITS, parts, strict=True)
        for i in part
    }
