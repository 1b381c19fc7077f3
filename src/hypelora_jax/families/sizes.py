"""Sizes of the encoders: `EncoderConfig`, the presets and what follows from sizes."""

from dataclasses import dataclass

from hypelora_jax.errors import UserError

FAMILIES = ("roberta", "bert")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")  # Hugging Face names


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of a BERT or RoBERTa encoder; rates are in [0, 1).

    Raises:
      UserError: a family or activation that is not supported, or heads that do not
        divide the width.
    """

    family: str
    vocab: int
    width: int
    heads: int
    layers: int
    ff: int
    max_positions: int  # rows of the position table; RoBERTa uses pad_id + 1 fewer
    type_vocab: int
    norm_eps: float
    pad_id: int
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    act: str = "gelu"

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise UserError(
                f"model family is {self.family!r}; wanted one of {', '.join(FAMILIES)}"
            )
        if self.act not in ACTIVATIONS:
            raise UserError(
                f"activation is {self.act!r}; wanted one of {', '.join(ACTIVATIONS)}"
            )
        if self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide the width {self.width};"
                " wanted a width that is a multiple of the heads"
            )


PRESETS = {
    "roberta_base": EncoderConfig(
        "roberta", 50265, 768, 12, 12, 3072, 514, 1, norm_eps=1e-5, pad_id=1
    ),
    "roberta_large": EncoderConfig(
        "roberta", 50265, 1024, 16, 24, 4096, 514, 1, norm_eps=1e-5, pad_id=1
    ),
    "minilm": EncoderConfig(
        "bert", 30522, 384, 12, 6, 1536, 512, 2, norm_eps=1e-12, pad_id=0
    ),
    # vocabulary of the byte tokenizer: <s> <pad> </s> <unk> <mask>, then 256 bytes
    "tiny": EncoderConfig(
        "roberta", 261, 32, 4, 2, 64, 514, 1, norm_eps=1e-5, pad_id=1
    ),
}


def preset(name: str) -> EncoderConfig:
    """The config of a preset; an unknown name is a `UserError` that lists them."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; wanted one of {', '.join(PRESETS)}")
    return PRESETS[name]


def site_dims(config: EncoderConfig) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of each adaptable projection, by canonical module name."""
    square = (config.width, config.width)
    dims = dict.fromkeys(("q", "k", "v", "o"), square)
    return dims | {"up": (config.width, config.ff), "down": (config.ff, config.width)}


def max_tokens(config: EncoderConfig) -> int:
    """Longest sequence, in tokens with the special ones, that the positions allow."""
    skipped = config.pad_id + 1 if config.family == "roberta" else 0
    return config.max_positions - skipped
