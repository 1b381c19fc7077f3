"""Our model in the words of transformers and peft: fields, names and a batch.

It does not import torch, whose libraries need not be those of JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.ours import CLASSES, Ours
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop import peft, tensors
from hypelora_jax.types import Params


def model(ours: Ours, attention_dropout: float | None = None) -> dict[str, Any]:
    """Fields of transformers' config.json; None keeps the rate of attention dropout."""
    sizes = ours.config
    if attention_dropout is not None:
        sizes = dataclasses.replace(sizes, attention_dropout=attention_dropout)
    return tensors.make_config(sizes, outputs=CLASSES)


def lora(ours: Ours) -> dict[str, Any]:
    """Fields of peft's LoraConfig for the adapter of our model."""
    _, ranks = named(ours, ours.params["lora"], ours.params["head"])
    own, sites = ours.settings.lora, ours.model.parts.lora_sites
    fields = peft.make_config(own, sites, ranks, ours.config, "")
    return {n: x for n, x in fields.items() if n not in ("peft_type", "inference_mode")}


def named(ours: Ours, lora: Params, head: Params) -> tuple[dict, dict]:
    """Return (tensors by peft's names, rank of each site)."""
    return peft.to_peft(ours.config, [(ours.model.parts.lora_sites, lora)], head)


def inputs(
    config: EncoderConfig, batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arguments of transformers' forward for one of our batches, int64."""
    names = {"input_ids": "ids", "attention_mask": "mask", "labels": "label"}
    if config.family == "bert":
        names["token_type_ids"] = "types"
    return {theirs: batch[own].astype(np.int64) for theirs, own in names.items()}
