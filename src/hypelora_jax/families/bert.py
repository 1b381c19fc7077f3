"""BERT (Devlin et al. 2019): positions from 0, segment types and a pooler as head."""

import jax
import jax.numpy as jnp

from hypelora_jax.data.tokens import TokenRoles, bert_pairs
from hypelora_jax.families.encoder import tensor_names
from hypelora_jax.families.encoder.config_json import reader, writer
from hypelora_jax.families.encoder.shardings import SHARDINGS
from hypelora_jax.families.encoder.stack import Layout, of_layout
from hypelora_jax.families.family import Family, Names, SequenceLayout
from hypelora_jax.families.sizes import EncoderConfig, site_dims


def positions(
    config: EncoderConfig, ids: jax.Array, begin: jax.Array | None = None
) -> jax.Array:
    """Rows 0, 1, 2, ... of the position table, also for padding."""
    del config
    tokens = jnp.broadcast_to(jnp.arange(ids.shape[-1], dtype=ids.dtype), ids.shape)
    return tokens if begin is None else tokens - begin


def max_tokens(config: EncoderConfig) -> int:
    """Longest sequence in tokens, special tokens included; each needs a position."""
    return config.max_positions


# In a file the pooler's name has the prefix and the classifier's name does not.
HEAD = {"dense": "bert.pooler.dense", "out": "classifier"}
LAYOUT = Layout(positions, segments=True, padded=("word",), max_tokens=max_tokens)
BERT = Family(
    name="bert",
    config=reader("bert", pad_id=0),
    fields=writer(("BertModel", "BertForSequenceClassification")),
    backbone=of_layout(LAYOUT),
    heads={"classes": HEAD, "regression": HEAD},
    sequence=SequenceLayout(input_dropout=False, activation="tanh"),
    sites=site_dims,
    names=Names(
        prefix="bert.",
        modules=tensor_names.MODULES,
        norms=tensor_names.NORMS,
        tables=tensor_names.TABLES,
        ignored=r"cls\..*|.*\bposition_ids",
    ),
    shardings=SHARDINGS,
    tokens=TokenRoles(segments=True, pairs=bert_pairs),
    presets={
        "minilm": EncoderConfig(
            "bert", 30522, 384, 12, 6, 1536, 512, 2, norm_eps=1e-12, pad_id=0
        ),
    },
    max_tokens=max_tokens,
)
