"""New entries of the tables, as a user of the library would write them.

They are the examples of docs/extending, and a family with a stack of its own. `install`
puts them into their tables and does nothing else. As a script, this file runs commands
of `hypelora` with these entries: a JSON list of argument lists on stdin.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import snippets
from jax.sharding import PartitionSpec as P

from hypelora_jax import cli, families
from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.data.tokens import TokenRoles, bert_pairs
from hypelora_jax.families.family import Family, Names, SequenceLayout
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import named_key
from hypelora_jax.types import Backbone

PAGES = ("backbone", "head", "conditioning", "objective", "method", "loss")

# A family with a stack of its own: two layers that mix each token with the mean of its
# text.


def backbone(
    config: EncoderConfig,
    *,
    dtype="float32",
    remat="none",
    lora_dropout=0.0,
    lowest=0,
    attention="xla",
) -> Backbone:
    del remat, lora_dropout, attention

    def init(key):
        shape = (config.layers, config.width, config.width)
        draw = jax.random.normal
        word = draw(named_key(key, "word"), (config.vocab, config.width))
        return {
            "embed": {"word": {"embedding": word}},
            "layers": {
                "q": {
                    "kernel": 0.3 * draw(named_key(key, "q"), shape),
                    "bias": jnp.zeros(shape[:2]),
                }
            },
        }

    def trace(params, lora, batch, key=None, row_B=None):
        del key, row_B
        x_BTD = params["embed"]["word"]["embedding"][batch["ids"]].astype(dtype)
        mask_BT1 = batch["mask"][..., None].astype(dtype)
        states = [x_BTD]
        for layer in range(config.layers):
            kernel, bias = (params["layers"]["q"][n][layer] for n in ("kernel", "bias"))
            mean = jnp.sum(x_BTD * mask_BT1, axis=-2, keepdims=True)
            mean = mean / jnp.maximum(jnp.sum(mask_BT1, axis=-2, keepdims=True), 1)
            mixed = x_BTD + mean
            y = jnp.einsum("...i,io->...o", mixed, kernel)
            y = y + jnp.broadcast_to(bias, y.shape)
            if "q" in lora:
                a, b = (lora["q"][n][layer].astype(dtype) for n in ("a", "b"))
                low = jnp.einsum("...i,ir->...r", mixed, a)
                y = y + jnp.einsum("...r,ro->...o", low, b)
            x_BTD = jnp.tanh(y)
            states.append(x_BTD)
        return jnp.stack(states)

    def apply(params, lora, batch, key=None, row_B=None):
        return trace(params, lora, batch, key, row_B)[-1]

    return Backbone(init, apply, trace)


def sizes_of(fields: JsonFields) -> EncoderConfig:
    width, layers = fields.integer("width", 1), fields.integer("depth", 1)
    return EncoderConfig(
        "toy",
        fields.integer("vocab", 1),
        width,
        2,
        layers,
        width,
        64,
        1,
        1e-5,
        pad_id=1,
    )


def fields_of(config: EncoderConfig, has_head: bool) -> dict[str, Any]:
    sizes = {"width": config.width, "depth": config.layers, "vocab": config.vocab}
    return {"model_type": "toy", "architectures": [f"Toy{has_head}"], **sizes}


HEAD_NAMES = {"dense": "head.dense", "out": "head.out"}
TOY = Family(
    name="toy",
    config=sizes_of,
    fields=fields_of,
    backbone=backbone,
    heads={"classes": HEAD_NAMES, "regression": HEAD_NAMES},
    sequence=SequenceLayout(input_dropout=False, activation="tanh"),
    sites=lambda config: {"q": (config.width, config.width)},
    names=Names(
        prefix="toy.",
        modules={"q": "block.{layer}.mix"},
        norms={},
        tables={"embed/word": "words"},
        ignored="nothing",
    ),
    shardings=(
        ("backbone/embed/word/embedding", P(("fsdp", "model"))),
        ("backbone/layers/q/kernel", P("fsdp", "model")),
        ("backbone/layers/q/bias", P("model")),
    ),
    tokens=TokenRoles(segments=False, pairs=bert_pairs),
    presets={"toy": EncoderConfig("toy", 261, 16, 2, 2, 16, 64, 1, 1e-5, pad_id=1)},
    max_tokens=lambda config: config.max_positions,
)


def install(patch: pytest.MonkeyPatch) -> None:
    """Put each entry into its table, until the patch ends."""
    patch.setitem(families.FAMILIES, "toy", TOY)
    for page in PAGES:
        snippets.install(f"docs/extending/{page}.md", patch)


if __name__ == "__main__":
    install(pytest.MonkeyPatch())
    for argv in json.load(sys.stdin):
        if code := cli.main(argv):
            sys.exit(code)
