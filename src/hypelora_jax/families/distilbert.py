"""DistilBERT (Sanh et al. 2019): BERT without segment types and without a pooler.

There is no dropout after the output projection of attention, and the first layer of the
head has a ReLU.
"""

from typing import Any

from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.data.tokens import TokenRoles, bert_pairs
from hypelora_jax.families.bert import max_tokens, positions
from hypelora_jax.families.encoder.config_json import activation, read_sizes
from hypelora_jax.families.encoder.shardings import SHARDINGS
from hypelora_jax.families.encoder.stack import Layout, of_layout
from hypelora_jax.families.family import Family, Names, SequenceLayout
from hypelora_jax.families.sizes import EncoderConfig, site_dims

NORM_EPS = 1e-12  # config.json has no field for it
SIZES = {  # field of config.json -> ours; all are required
    "vocab_size": "vocab",
    "dim": "width",
    "n_heads": "heads",
    "n_layers": "layers",
    "hidden_dim": "ff",
    "max_position_embeddings": "max_positions",
}


def read(fields: JsonFields) -> EncoderConfig:
    """Convert config.json to sizes; defaults are those of transformers.

    Raises:
      UserError: a field is missing or out of range.
    """
    return EncoderConfig(
        "distilbert",
        **read_sizes(fields, SIZES, pad_id=0),
        type_vocab=0,
        norm_eps=NORM_EPS,
        hidden_dropout=fields.rate("dropout", 0.1),
        attention_dropout=fields.rate("attention_dropout", 0.1),
        head_dropout=fields.rate("seq_classif_dropout", 0.2),
        act=activation(fields, "activation"),
    )


def write(config: EncoderConfig, has_head: bool) -> dict[str, Any]:
    """Convert sizes to fields of config.json, the inverse of `read`."""
    architecture = (
        "DistilBertForSequenceClassification" if has_head else "DistilBertModel"
    )
    return {
        "architectures": [architecture],
        "model_type": config.family,
        **{name: getattr(config, ours) for name, ours in SIZES.items()},
        "sinusoidal_pos_embds": False,  # the table of positions is in the file
        "pad_token_id": config.pad_id,
        "dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "seq_classif_dropout": config.head_dropout,
        "activation": config.act,
    }


LAYER = "transformer.layer.{layer}."
HEAD = {"dense": "pre_classifier", "out": "classifier"}
LAYOUT = Layout(
    positions,
    segments=False,
    padded=("word",),
    max_tokens=max_tokens,
    drops_attended=False,
)
DISTILBERT = Family(
    name="distilbert",
    config=read,
    fields=write,
    backbone=of_layout(LAYOUT),
    heads={"classes": HEAD, "regression": HEAD},
    sequence=SequenceLayout(input_dropout=False, activation="relu"),
    sites=site_dims,
    names=Names(
        prefix="distilbert.",
        modules={
            "q": LAYER + "attention.q_lin",
            "k": LAYER + "attention.k_lin",
            "v": LAYER + "attention.v_lin",
            "o": LAYER + "attention.out_lin",
            "up": LAYER + "ffn.lin1",
            "down": LAYER + "ffn.lin2",
        },
        norms={
            "embed/norm": "embeddings.LayerNorm",
            "layers/attn_norm": LAYER + "sa_layer_norm",
            "layers/ff_norm": LAYER + "output_layer_norm",
        },
        tables={
            "embed/word": "embeddings.word_embeddings",
            "embed/position": "embeddings.position_embeddings",
        },
        ignored=r"vocab_(transform|layer_norm|projector)\..*|.*\bposition_ids",
    ),
    shardings=SHARDINGS,
    tokens=TokenRoles(segments=False, pairs=bert_pairs),
    presets={
        "distilbert_base": EncoderConfig(
            "distilbert",
            30522,
            768,
            12,
            6,
            3072,
            512,
            0,
            norm_eps=NORM_EPS,
            pad_id=0,
            head_dropout=0.2,
        ),
    },
    max_tokens=max_tokens,
)
