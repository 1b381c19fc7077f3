"""Transformer architectures and the heads that read them, as values of two tables.

A family defines all that other packages need: sizes, blocks, names, shardings and
tokens. Adapters are arguments. Heads read the description of a task; otherwise this
package knows nothing of methods, data or run folders.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from hypelora_jax.config.adapter_sections import HeadConfig
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError, choose
from hypelora_jax.families.bert import BERT
from hypelora_jax.families.distilbert import DISTILBERT
from hypelora_jax.families.family import Family
from hypelora_jax.families.label_text_head import label_text_head
from hypelora_jax.families.per_task_head import per_task_head
from hypelora_jax.families.roberta import ROBERTA
from hypelora_jax.families.separate_heads import separate_heads
from hypelora_jax.families.sequence_head import sequence_head
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.families.xlm_roberta import XLM_ROBERTA
from hypelora_jax.types import Backbone, Head

# Architectures, by the `model_type` of a model's config.json.
FAMILIES: dict[str, Family] = {
    "roberta": ROBERTA,
    "bert": BERT,
    "distilbert": DISTILBERT,
    "xlm-roberta": XLM_ROBERTA,
}


def _classes(
    family: Family, sizes: EncoderConfig, task: Task, config: HeadConfig, dtype: str
) -> Head:
    del config
    return sequence_head(family.sequence, sizes, len(task.labels), dtype=dtype)


def _regression(
    family: Family, sizes: EncoderConfig, task: Task, config: HeadConfig, dtype: str
) -> Head:
    del task, config
    return sequence_head(family.sequence, sizes, 1, dtype=dtype)


BuildHead = Callable[[Family, EncoderConfig, Task, HeadConfig, str], Head]


class HeadKind(NamedTuple):
    """A kind of head: what builds it, and what it asks for."""

    build: BuildHead
    names: bool = False  # it reads embeddings of the names of classes


# Heads, which read hidden states, by the name in config.head.kind.
HEADS: dict[str, HeadKind] = {
    "classes": HeadKind(_classes),
    "regression": HeadKind(_regression),
    "per_task": HeadKind(per_task_head),
    "separate": HeadKind(separate_heads),
    "label_text": HeadKind(label_text_head, names=True),
}


def of(config: EncoderConfig) -> Family:
    """Return the family of a model from its sizes.

    Raises:
      UserError: there is no such family.
    """
    if config.family not in FAMILIES:
        raise UserError(
            f"model family is {config.family!r}; expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[config.family]


def backbone(settings: Settings, config: EncoderConfig, lowest: int) -> Backbone:
    """Build the backbone of a model; `lowest` is the lowest layer with an adapter.

    Seeds that train side by side are under `vmap`, for which JAX's rule for cuDNN's
    kernel wants every argument to have an axis of seeds. They are computed by xla.

    Raises:
      UserError: such seeds are asked to use a fused kernel.
    """
    base, uncertainty = settings.model, settings.uncertainty
    if uncertainty.seeds > 1 and base.attention == "fused":
        raise UserError(
            "config.model.attention is fused, but the seeds of uncertainty.kind="
            f"{uncertainty.kind} train in one program, which the kernel does not take; "
            "expected model.attention=auto"
        )
    if base.attention_dropout is not None:
        config = dataclasses.replace(config, attention_dropout=base.attention_dropout)
    return of(config).backbone(
        config,
        dtype=base.dtype,
        remat=base.remat,
        lora_dropout=settings.lora.dropout,
        lowest=lowest,
        attention=base.attention if uncertainty.seeds == 1 else "xla",
    )


def names(config: HeadConfig) -> bool:
    """Whether the head reads embeddings of the names of classes."""
    return config.kind in HEADS and HEADS[config.kind].names


def head_kind(name: str, task: Task) -> str:
    """Resolve config.head.kind to a kind of head; "auto" gives the kind of the task."""
    if name == "auto":
        return "classes" if task.labels else "regression"
    choose(HEADS, name, "head.kind")
    return name


def head(config: HeadConfig, sizes: EncoderConfig, task: Task, *, dtype: str) -> Head:
    """Build the head of a model.

    Raises:
      UserError: there is no head of this kind, or it does not fit the task.
    """
    kind = HEADS[head_kind(config.kind, task)]
    return kind.build(of(sizes), sizes, task, config, dtype)


def preset(name: str) -> EncoderConfig:
    """Return the sizes of a preset of any family.

    Raises:
      UserError: there is no such preset; the message lists all.
    """
    presets = {n: sizes for f in FAMILIES.values() for n, sizes in f.presets.items()}
    if name not in presets:
        raise UserError(
            f"there is no preset {name!r}; expected one of {', '.join(presets)}"
        )
    return presets[name]
