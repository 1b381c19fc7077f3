"""Sizes and constants of an encoder, and the widths of its projections."""

from dataclasses import dataclass

from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks.activations import ACTIVATION


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of an encoder; rates are in [0, 1).

    `family` is a key of FAMILIES.

    Raises:
      UserError: the activation is not supported, or the heads do not divide the
        width.
    """

    family: str
    vocab: int
    width: int
    heads: int
    layers: int
    ff: int
    max_positions: int  # rows of the position table; RoBERTa uses pad_id + 1 fewer
    type_vocab: int  # 0 if the model has no table of segment types
    norm_eps: float
    pad_id: int
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    act: str = "gelu"

    def __post_init__(self):
        if self.act not in ACTIVATION:
            raise UserError(
                f"the activation is {self.act!r}; expected one of "
                f"{', '.join(ACTIVATION)}"
            )
        if self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide the width {self.width}; expected a "
                "width that is a multiple of the number of heads"
            )


def site_dims(config: EncoderConfig) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of each adaptable projection, by canonical module name."""
    square = (config.width, config.width)
    dims = dict.fromkeys(("q", "k", "v", "o"), square)
    return dims | {"up": (config.width, config.ff), "down": (config.ff, config.width)}
