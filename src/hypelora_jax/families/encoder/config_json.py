"""Conversion of config.json of BERT-like encoders to sizes, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypelora_jax.config.json_fields import MAX_INTEGER, JsonFields
from hypelora_jax.families.blocks.activations import ACTIVATION
from hypelora_jax.families.sizes import EncoderConfig

SIZES = {  # field of config.json -> ours; all are required
    "vocab_size": "vocab",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_hidden_layers": "layers",
    "intermediate_size": "ff",
    "max_position_embeddings": "max_positions",
}
LARGEST = {"layers": 10_000}  # each layer has names of its own in memory
# The only supported values; a file may leave these fields out.
ONLY = (("position_embedding_type", "absolute"), ("is_decoder", False))


def read_sizes(
    fields: JsonFields, names: Mapping[str, str], pad_id: int
) -> dict[str, int]:
    """Read sizes of config.json by their names in EncoderConfig, and `pad_id`.

    Args:
      fields: the fields of config.json.
      names: field of config.json -> ours.
      pad_id: id of the padding token if the file has none.
    """
    found = {
        ours: fields.integer(name, 1, high=LARGEST.get(ours, MAX_INTEGER))
        for name, ours in names.items()
    }
    last = found["vocab"] - 1  # the padding token is a row of the table
    return found | {"pad_id": fields.integer("pad_token_id", 0, pad_id, last)}


def activation(fields: JsonFields, name: str) -> str:
    """Read the name of an activation; the default is transformers' exact GELU."""
    return fields.only(name, *ACTIVATION)


def reader(family: str, pad_id: int) -> Callable[[JsonFields], EncoderConfig]:
    """Build the reader of config.json; `pad_id` is used if the file has none.

    Raises:
      UserError: a field is missing, out of range, or asks for another architecture.
    """

    def read(fields: JsonFields) -> EncoderConfig:
        for name, only in ONLY:
            fields.only(name, only)
        hidden = fields.rate("hidden_dropout_prob", 0.1)
        return EncoderConfig(
            family,
            **read_sizes(fields, SIZES, pad_id),
            type_vocab=fields.integer("type_vocab_size", 1, 2),
            norm_eps=fields.number("layer_norm_eps", 0, 1e-12),
            hidden_dropout=hidden,
            attention_dropout=fields.rate("attention_probs_dropout_prob", 0.1),
            head_dropout=fields.rate("classifier_dropout", hidden),
            act=activation(fields, "hidden_act"),
        )

    return read


def writer(architectures: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """Build the writer of fields of config.json from sizes, the inverse of `reader`.

    Args:
      architectures: class names in transformers, without and with a sequence head.
    """

    def write(config: EncoderConfig, has_head: bool) -> dict[str, Any]:
        ours = {name: getattr(config, field) for name, field in SIZES.items()}
        return {
            "architectures": [architectures[has_head]],
            "model_type": config.family,
            **ours,
            "type_vocab_size": config.type_vocab,
            "layer_norm_eps": config.norm_eps,
            "pad_token_id": config.pad_id,
            "hidden_dropout_prob": config.hidden_dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
            "classifier_dropout": config.head_dropout,
            "hidden_act": config.act,
        }

    return write
