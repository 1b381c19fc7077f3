"""The interface of a transformer architecture: one `Family` value for each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.data.tokens import TokenRoles
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.sharding.rules import Table
from hypelora_jax.types import Backbone


class Names(NamedTuple):
    """Hugging Face's names of a family's tensors, without `prefix` unless stated.

    A name with `{layer}` stands for a stack with one tensor per layer.
    """

    prefix: str  # of backbone names in the file of a whole model, "bert."
    modules: Mapping[str, str]  # canonical module -> projection
    norms: Mapping[str, str]  # path under `backbone` -> layer norm
    tables: Mapping[str, str]  # path under `backbone` -> embedding table
    ignored: str  # regex of tensors that are not in our tree

    @property
    def full(self) -> dict[str, str]:
        """Projections by canonical module, with the prefix."""
        return {m: self.prefix + name for m, name in self.modules.items()}


class SequenceLayout(NamedTuple):
    """How a family's head turns the first token's state into logits."""

    input_dropout: bool  # before the first layer, as in RoBERTa
    activation: str  # after the first layer, a key of ACTIVATION


class BuildBackbone(Protocol):
    """Builds the backbone of a family.

    `dtype` is the dtype of the blocks (softmax and norms take at least float32),
    `remat` names what the backward pass recomputes, `lora_dropout` is the dropout rate
    on the adapter's input, no gradient goes below the layer `lowest`, and `attention`
    is config.model.attention.
    """

    def __call__(
        self,
        config: EncoderConfig,
        *,
        dtype: str = "float32",
        remat: str = "none",
        lora_dropout: float = 0.0,
        lowest: int = 0,
        attention: str = "xla",
    ) -> Backbone:
        """Return the backbone; its `apply` takes the `backbone` subtree."""


class Family(NamedTuple):
    """A transformer architecture; its name is the `model_type` of config.json.

    `heads` maps the kinds of head that the family's checkpoints carry to the Hugging
    Face names of their layers, with prefixes. `config` converts fields of config.json
    to sizes, and `fields` is its inverse. The second argument of `fields` says whether
    the model has a sequence head.
    """

    name: str
    config: Callable[[JsonFields], EncoderConfig]
    fields: Callable[[EncoderConfig, bool], dict[str, Any]]
    backbone: BuildBackbone
    heads: Mapping[str, Mapping[str, str]]
    sequence: SequenceLayout
    sites: Callable[[EncoderConfig], dict[str, tuple[int, int]]]
    names: Names
    shardings: Table
    tokens: TokenRoles
    presets: Mapping[str, EncoderConfig]
    max_tokens: Callable[[EncoderConfig], int]
