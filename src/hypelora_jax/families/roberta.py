"""RoBERTa (Liu et al. 2019): positions count from pad_id + 1, without segments."""

import jax
import jax.numpy as jnp

from hypelora_jax.data.tokens import TokenRoles, roberta_pairs
from hypelora_jax.families.encoder import tensor_names
from hypelora_jax.families.encoder.config_json import reader, writer
from hypelora_jax.families.encoder.shardings import SHARDINGS
from hypelora_jax.families.encoder.stack import Layout, of_layout
from hypelora_jax.families.family import Family, Names, SequenceLayout
from hypelora_jax.families.sizes import EncoderConfig, site_dims


def positions(
    config: EncoderConfig, ids: jax.Array, begin: jax.Array | None = None
) -> jax.Array:
    """Rows of the position table: tokens count from pad_id + 1, padding has pad_id."""
    token = (ids != config.pad_id).astype(ids.dtype)
    count = jnp.cumsum(token, axis=-1, dtype=ids.dtype)
    if begin is not None:
        count = count - jnp.take_along_axis(count - token, begin, axis=-1)
    return count * token + config.pad_id


def max_tokens(config: EncoderConfig) -> int:
    """Longest sequence in tokens, special tokens included."""
    return config.max_positions - config.pad_id - 1


HEAD = {"dense": "classifier.dense", "out": "classifier.out_proj"}
LAYOUT = Layout(
    positions, segments=False, padded=("word", "position"), max_tokens=max_tokens
)
ROBERTA = Family(
    name="roberta",
    config=reader("roberta", pad_id=1),
    fields=writer(("RobertaModel", "RobertaForSequenceClassification")),
    backbone=of_layout(LAYOUT),
    heads={"classes": HEAD, "regression": HEAD},
    sequence=SequenceLayout(input_dropout=True, activation="tanh"),
    sites=site_dims,
    names=Names(
        prefix="roberta.",
        modules=tensor_names.MODULES,
        norms=tensor_names.NORMS,
        tables=tensor_names.TABLES,
        ignored=r"lm_head\..*|.*\bposition_ids|pooler\.dense\.(weight|bias)",
    ),
    shardings=SHARDINGS,
    tokens=TokenRoles(segments=False, pairs=roberta_pairs),
    presets={
        "roberta_base": EncoderConfig(
            "roberta", 50265, 768, 12, 12, 3072, 514, 1, norm_eps=1e-5, pad_id=1
        ),
        "roberta_large": EncoderConfig(
            "roberta", 50265, 1024, 16, 24, 4096, 514, 1, norm_eps=1e-5, pad_id=1
        ),
        # vocabulary of the byte tokenizer: <s> <pad> </s> <unk> <mask>, 256 bytes
        "tiny": EncoderConfig(
            "roberta", 261, 32, 4, 2, 64, 514, 1, norm_eps=1e-5, pad_id=1
        ),
    },
    max_tokens=max_tokens,
)
