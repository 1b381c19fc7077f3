"""Embeds texts with a frozen encoder: the mean of its last hidden states."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from hypelora_jax import families
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokens import Tokenizer, cached
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.types import Batch, Params

MAX_TOKENS = 128  # of a text; longer ones are cut, with a warning
ROWS = 64  # texts of a batch; a text alone is one row, which takes a fiftieth of it
ROUND = 16  # lengths are multiples of it, so that few programs are compiled


def width(path: str) -> int:
    """Return the width C of the vectors of an encoder.

    Raises:
      UserError: there is no such model.
    """
    return bases.resolve(path).config.width


class _Encoder(NamedTuple):
    """The base model with its tokenizer and weights, and the mean of its states (B, C).

    `pooled(params, batch)` is jitted; texts are cut to `limit` tokens.
    """

    base: bases.Base
    tokenizer: Tokenizer
    params: Params
    pooled: Callable[[Params, Batch], jax.Array]
    limit: int


@functools.lru_cache(maxsize=2)  # a service may have runs with different ones
def _encoder(path: str) -> _Encoder:
    base = bases.resolve(path)
    backbone = families.of(base.config).backbone(base.config)
    params = bases.load(base, 1, jax.random.key(0))["backbone"]

    @jax.jit
    def pooled(params: Params, batch: Batch) -> jax.Array:
        hidden_BTD = backbone.apply(params, {}, batch).astype(jnp.float32)
        weight_BT1 = batch["mask"][..., None].astype(jnp.float32)
        return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)

    limit = min(MAX_TOKENS, families.of(base.config).max_tokens(base.config))
    tokenizer = cached(bases.read_tokenizer(base))
    return _Encoder(base, tokenizer, jax.device_put(params), pooled, limit)


def warm(path: str) -> None:
    """Compile what embeds a text alone, of any length.

    Raises:
      UserError: there is no such model.
    """
    own = _encoder(path)
    for length in {_padded(n, 1, own.limit) for n in range(1, own.limit + 1)}:
        _means(own, [np.zeros(1, np.int32)], length, 1)


def _padded(longest: int, rows: int, limit: int) -> int:
    """Return the length T of a batch; that of one row doubles, for fewer programs."""
    length = ROUND
    while length < longest:
        length = 2 * length if rows == 1 else length + ROUND
    return min(length, limit)


def _means(
    own: _Encoder, texts: Sequence[np.ndarray], length: int, rows: int
) -> np.ndarray:
    """Return the means (n, C) of n texts, int32 token ids, at most `rows`."""
    ids = np.full((rows, length), own.base.config.pad_id, np.int32)
    mask = np.zeros((rows, length), bool)
    mask[:, 0] = True  # rows of padding have a token, so their mean is finite
    for i, text in enumerate(texts):
        ids[i, : len(text)] = text
        mask[i, : len(text)] = True
    batch: dict[str, Any] = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
    return np.asarray(own.pooled(own.params, batch))[: len(texts)]


def embed(path: str, texts: Sequence[str]) -> np.ndarray:
    """Embed texts: float32 (n, C), the mean over the tokens of each, special ones too.

    This is how sentence-transformers pool MiniLM, before they normalise.

    Args:
      path: the encoder, as `config.model.path`; weights that are drawn are the same in
        every call.
      texts: texts of any length; more than MAX_TOKENS tokens are cut.

    Raises:
      UserError: there is no such model.
    """
    own = _encoder(path)
    none = np.full(len(texts), -1, np.int32)
    table = Table(np.arange(len(texts)), list(texts), None, none)
    encoded = own.tokenizer.encode(table, own.limit)
    if encoded.truncated:
        logging.warning(
            "cut %d of %d texts to %d tokens before they were embedded",
            encoded.truncated,
            len(texts),
            own.limit,
        )
    size = 1 if len(texts) == 1 else ROWS
    lengths = np.array([len(x) for x in encoded.ids])
    out = np.zeros((len(texts), own.base.config.width), np.float32)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(texts), size):
        rows = order[start : start + size]
        length = _padded(int(lengths[rows].max()), size, own.limit)
        out[rows] = _means(own, [encoded.ids[row] for row in rows], length, size)
    if not np.isfinite(out).all():
        raise UserError(
            f"the encoder {own.base.name} gives vectors that are not finite; expected "
            "another config.condition.encoder"
        )
    return out
