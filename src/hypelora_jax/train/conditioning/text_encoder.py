"""Embeds texts with a frozen encoder: the mean of its last hidden states."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from hypelora_jax import families
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokens import cached
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.types import Batch, Params

MAX_TOKENS = 128  # of a text; longer ones are cut, with a warning
ROWS = 64  # texts of a batch
ROUND = 16  # lengths are multiples of it, so that few programs are compiled


def width(path: str) -> int:
    """Return the width C of the vectors of an encoder.

    Raises:
      UserError: there is no such model.
    """
    return bases.resolve(path).config.width


@functools.lru_cache(maxsize=1)
def _encoder(path: str) -> tuple[bases.Base, Params, Callable[..., jax.Array]]:
    """Return the base model, its weights, and the jitted mean of its states (B, C)."""
    base = bases.resolve(path)
    backbone = families.of(base.config).backbone(base.config)
    params = bases.load(base, 1, jax.random.key(0))["backbone"]

    @jax.jit
    def pooled(params: Params, batch: Batch) -> jax.Array:
        hidden_BTD = backbone.apply(params, {}, batch).astype(jnp.float32)
        weight_BT1 = batch["mask"][..., None].astype(jnp.float32)
        return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)

    return base, jax.device_put(params), pooled


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
    base, params, pooled = _encoder(path)
    family = families.of(base.config)
    limit = min(MAX_TOKENS, family.max_tokens(base.config))
    none = np.full(len(texts), -1, np.int32)
    table = Table(np.arange(len(texts)), list(texts), None, none)
    encoded = cached(bases.read_tokenizer(base)).encode(table, limit)
    if encoded.truncated:
        logging.warning(
            "cut %d of %d texts to %d tokens before they were embedded",
            encoded.truncated,
            len(texts),
            limit,
        )

    lengths = np.array([len(x) for x in encoded.ids])
    out = np.zeros((len(texts), base.config.width), np.float32)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(texts), ROWS):
        rows = order[start : start + ROWS]
        length = min(-(-int(lengths[rows].max()) // ROUND) * ROUND, limit)
        ids = np.full((ROWS, length), base.config.pad_id, np.int32)
        mask = np.zeros((ROWS, length), bool)
        mask[:, 0] = True  # rows of padding have a token, so their mean is finite
        for i, row in enumerate(rows):
            ids[i, : lengths[row]] = encoded.ids[row]
            mask[i, : lengths[row]] = True
        batch = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
        out[rows] = np.asarray(pooled(params, batch))[: len(rows)]
    if not np.isfinite(out).all():
        raise UserError(
            f"the encoder {base.name} gives vectors that are not finite; expected "
            "another config.condition.encoder"
        )
    return out
