"""Embeds texts with a frozen encoder: means and extremes of its hidden states."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from hypelora_jax import families
from hypelora_jax.data.formats.cells import shown
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokens import Tokenizer, cached
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.types import Batch, Params

MAX_TOKENS = 128  # of a text; longer ones are cut, with a warning
ROWS = 64  # texts of a batch; a text alone is one row, which takes a fiftieth of it
ROUND = 16  # lengths are multiples of it, so that few programs are compiled


def width(path: str, layers: int = 0) -> int:
    """Return the width C of the vectors that `embed` returns.

    Raises:
      UserError: there is no such model, or it has fewer layers.
    """
    base = bases.resolve(path)
    if layers > base.config.layers:
        raise UserError(
            f"config.condition.sign is {layers}, but the encoder {base.name} has "
            f"{base.config.layers} layers; expected at most that many"
        )
    return max(1, 3 * layers) * base.config.width


class _Encoder(NamedTuple):
    """The base model with its tokenizer and weights, and what pools its states.

    `pooled(layers, params, batch)` is jitted and returns (B, C), see `embed`. Texts are
    cut to `limit` tokens.
    """

    base: bases.Base
    tokenizer: Tokenizer
    params: Params
    pooled: Callable[[int, Params, Batch], jax.Array]
    limit: int


@functools.lru_cache(maxsize=2)  # a service may have runs with different ones
def _encoder(path: str) -> _Encoder:
    base = bases.resolve(path)
    backbone = families.of(base.config).backbone(base.config)
    params = bases.load(base, 1, jax.random.key(0))["backbone"]

    @functools.partial(jax.jit, static_argnums=0)
    def pooled(layers: int, params: Params, batch: Batch) -> jax.Array:
        real_BT1 = batch["mask"][..., None]

        def mean(x_BTD: jax.Array) -> jax.Array:
            total_BD = jnp.where(real_BT1, x_BTD.astype(jnp.float32), 0).sum(1)
            return total_BD / real_BT1.sum(1)

        if layers == 0:  # a trace would keep the states of all layers
            return mean(backbone.apply(params, {}, batch))
        each = []
        for x_BTD in backbone.trace(params, {}, batch)[-layers:]:
            x_BTD = x_BTD.astype(jnp.float32)
            most_BD = jnp.where(real_BT1, x_BTD, -jnp.inf).max(1)
            least_BD = jnp.where(real_BT1, x_BTD, jnp.inf).min(1)
            each += [most_BD, least_BD, mean(x_BTD)]
        return jnp.concatenate(each, axis=-1)

    limit = min(MAX_TOKENS, families.of(base.config).max_tokens(base.config))
    tokenizer = cached(bases.read_tokenizer(base))
    return _Encoder(base, tokenizer, jax.device_put(params), pooled, limit)


def warm(path: str, layers: int = 0) -> None:
    """Compile what embeds a text alone, of any length.

    Raises:
      UserError: there is no such model.
    """
    own = _encoder(path)
    for length in {_padded(n, 1, own.limit) for n in range(1, own.limit + 1)}:
        _vectors(own, layers, [np.zeros(1, np.int32)], length, 1)


def _padded(longest: int, rows: int, limit: int) -> int:
    """Return the length T of a batch; that of one row doubles, for fewer programs."""
    length = ROUND
    while length < longest:
        length = 2 * length if rows == 1 else length + ROUND
    return min(length, limit)


def _vectors(
    own: _Encoder, layers: int, texts: Sequence[np.ndarray], length: int, rows: int
) -> np.ndarray:
    """Return the vectors (n, C) of n texts, int32 token ids, at most `rows`."""
    ids = np.full((rows, length), own.base.config.pad_id, np.int32)
    mask = np.zeros((rows, length), bool)
    mask[:, 0] = True  # rows of padding have a token, so their mean is finite
    for i, text in enumerate(texts):
        ids[i, : len(text)] = text
        mask[i, : len(text)] = True
    batch: dict[str, Any] = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
    return np.asarray(own.pooled(layers, own.params, batch))[: len(texts)]


def warn_of_equal(path: str, texts: Sequence[Sequence[str]]) -> None:
    """Log one warning if different descriptions of two tasks are the same tokens.

    This happens if the encoder does not know their alphabet, if it ignores case, or if
    they begin with the same MAX_TOKENS tokens.

    Args:
      path: the encoder, as in `embed`.
      texts: the descriptions of each task.
    """
    own = _encoder(path)
    flat = [(k, text) for k, some in enumerate(texts) for text in some]
    first: dict[bytes, tuple[int, str]] = {}
    none = np.full(len(flat), -1, np.int32)
    table = Table(np.arange(len(flat)), [text for _, text in flat], None, none)
    for (k, text), ids in zip(
        flat, own.tokenizer.encode(table, own.limit).ids, strict=True
    ):
        other, said = first.setdefault(ids.tobytes(), (k, text))
        if other != k and said != text:
            logging.warning(
                "the encoder %s reads %s and %s, which two tasks have, as the same "
                "text, so both get the same adapter; expected other words that it "
                "knows, among the first %d tokens",
                own.base.name,
                *(shown(said), shown(text), own.limit),
            )
            return


def embed(path: str, texts: Sequence[str], layers: int = 0) -> np.ndarray:
    """Embed texts: float32 (n, C), the mean over the tokens of each, special ones too.

    This is how sentence-transformers pool MiniLM, before they normalise. With `layers`
    C is 3 layers D: maximum, minimum and mean over the tokens, each (D,), of each of
    the last layers. A mean dilutes a single word such as "not", an extreme does not.
    The mean of the last layer is last.

    Args:
      path: the encoder, as `config.model.path`; weights that are drawn are the same in
        every call.
      texts: texts of any length; more than MAX_TOKENS tokens are cut.
      layers: the last layers of the encoder that are read; 0: means of the last alone.

    Raises:
      UserError: there is no such model, or it has fewer layers.
    """
    wide, own = width(path, layers), _encoder(path)
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
    out = np.zeros((len(texts), wide), np.float32)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(texts), size):
        rows = order[start : start + size]
        length = _padded(int(lengths[rows].max()), size, own.limit)
        ids = [encoded.ids[row] for row in rows]
        out[rows] = _vectors(own, layers, ids, length, size)
    if not np.isfinite(out).all():
        raise UserError(
            f"the encoder {own.base.name} gives vectors that are not finite; expected "
            "another config.condition.encoder"
        )
    return out
