"""Conversion of config.json of BERT-like encoders to sizes, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig

Fields = Mapping[str, Any]
# field of config.json -> ours, and the least value; all are required
SIZES = {
    "vocab_size": ("vocab", 1),
    "hidden_size": ("width", 1),
    "num_attention_heads": ("heads", 1),
    "num_hidden_layers": ("layers", 1),
    "intermediate_size": ("ff", 1),
    "max_position_embeddings": ("max_positions", 1),
}
# The only supported values; a file may leave these fields out.
ONLY = (("position_embedding_type", "absolute"), ("is_decoder", False))


def number(fields: Fields, name: str, low: float, default: Any = None) -> Any:
    """Read a number of config.json, which must be an integer if `low` is one.

    Raises:
      UserError: it is missing and has no default, or is not a number of at least `low`.
    """
    got = fields.get(name)
    got = default if got is None else got
    if got is None:
        raise UserError(f"it has no {name}; expected the config saved with the model")
    kinds = (int,) if isinstance(low, int) else (int, float)
    if isinstance(got, bool) or not isinstance(got, kinds) or not got >= low:
        what = "an integer" if kinds == (int,) else "a number"
        raise UserError(f"{name} is {got!r}; expected {what} of at least {low}")
    return got


def rate(fields: Fields, name: str, default: float) -> float:
    """Read a dropout rate of config.json, in [0, 1)."""
    got = number(fields, name, 0.0, default)
    if not got < 1:
        raise UserError(f"{name} is {got}; expected a rate in [0, 1)")
    return float(got)


def reader(family: str, pad_id: int) -> Callable[[Fields], EncoderConfig]:
    """Build the reader of config.json; `pad_id` is used if the file has none.

    Raises:
      UserError: a field is missing, out of range, or asks for another architecture.
    """

    def read(fields: Fields) -> EncoderConfig:
        for name, only in ONLY:
            if fields.get(name, only) != only:
                raise UserError(f"{name} is {fields[name]!r}; expected {only!r}")
        sizes = {ours: number(fields, name, low) for name, (ours, low) in SIZES.items()}
        hidden = rate(fields, "hidden_dropout_prob", 0.1)
        return EncoderConfig(
            family,
            **sizes,
            type_vocab=number(fields, "type_vocab_size", 1, 2),
            norm_eps=float(number(fields, "layer_norm_eps", 0.0, 1e-12)),
            pad_id=number(fields, "pad_token_id", 0, pad_id),
            hidden_dropout=hidden,
            attention_dropout=rate(fields, "attention_probs_dropout_prob", 0.1),
            head_dropout=rate(fields, "classifier_dropout", hidden),
            act=fields.get("hidden_act", "gelu"),
        )

    return read


def writer(architectures: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """Build the writer of fields of config.json from sizes, the inverse of `reader`.

    Args:
      architectures: class names in transformers, without and with a sequence head.
    """

    def write(config: EncoderConfig, has_head: bool) -> dict[str, Any]:
        ours = {name: getattr(config, field) for name, (field, _) in SIZES.items()}
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
