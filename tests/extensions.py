"""One new entry for each of the five tables, as a user of the library would write it.

`install` puts them into their tables and does nothing else. As a script, this file runs
commands of `hypelora` with these entries: a JSON list of argument lists on stdin.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from hypelora_jax import cli, families, hyper, model, objectives
from hypelora_jax.data.tokens import TokenRoles, bert_pairs
from hypelora_jax.families.family import Family, Names, SequenceLayout
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import named_key
from hypelora_jax.types import (
    Backbone,
    Conditioner,
    Conditions,
    Head,
    Judge,
    Method,
    Objective,
)

# ---- a family: two layers that mix each token with the mean of its text


def backbone(
    config: EncoderConfig, *, dtype="float32", remat="none", lora_dropout=0.0
) -> Backbone:
    del remat, lora_dropout

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


def sizes_of(fields: Any) -> EncoderConfig:
    width, layers = fields["width"], fields["depth"]
    return EncoderConfig(
        "toy", fields["vocab"], width, 2, layers, width, 64, 1, 1e-5, pad_id=1
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


# ---- a head: the mean of the tokens, one layer


def mean_head(family: Family, config: EncoderConfig, task: Any, dtype: str) -> Head:
    del family, dtype

    def init(key):
        kernel = 0.1 * jax.random.normal(key, (config.width, task.num_outputs))
        return {"out": {"kernel": kernel, "bias": jnp.zeros(task.num_outputs)}}

    def features(params, hidden_BTD):
        del params
        return jnp.mean(hidden_BTD.astype(jnp.float32), axis=-2)

    def apply(params, hidden_BTD, batch, key=None):
        del key
        mask_BT1 = batch["mask"][..., None].astype(jnp.float32)
        total = jnp.sum(hidden_BTD * mask_BT1, axis=-2)
        mean = total / jnp.maximum(jnp.sum(mask_BT1, axis=-2), 1)
        out = jnp.einsum("...i,io->...o", mean, params["out"]["kernel"])
        return out + jnp.broadcast_to(params["out"]["bias"], out.shape)

    return Head(init, apply, features)


# ---- a conditioner: one learned vector added to the description of every site


def shared_vector(settings: Any, slots: int) -> Conditioner:
    described = hyper.CONDITIONERS["none"](settings, slots)

    def init(key):
        own = jax.random.normal(named_key(key, "shared"), (described.width,))
        return {**described.init(key), "shared": own}

    def apply(params, batch, key=None):
        vectors_USC, row_B = described.apply(params, batch, key)
        shared = jnp.broadcast_to(params["shared"], vectors_USC.shape)
        return Conditions(vectors_USC + shared, row_B)

    return Conditioner(init, apply, {}, described.width)


# ---- an objective: the absolute error of a number


def absolute_error(config: Any, names: Any) -> Objective:
    del config, names

    def sums(model, params, adapter, batch, key):
        score_B = model.classify(params, adapter, batch, key)[:, 0]
        error_B = jnp.abs(score_B - batch["label"]) * batch["weight"]
        return jnp.sum(error_B), jnp.sum(batch["weight"])

    def update(state, logits_NY, label_N, soft_NY=None):
        del soft_NY
        keep = ~np.isnan(label_N)
        error_N = np.abs(np.asarray(logits_NY, np.float64)[keep, 0] - label_N[keep])
        return state + np.array([error_N.sum(), len(error_N)])

    def result(state, probabilities):
        del probabilities
        total, n = state
        return {"n": int(n), "mae": float(total / n)} if n else {}

    judge = Judge(lambda: np.zeros(2), update, np.add, result)
    return Objective(lambda key: {}, ("label", "weight"), sums, judge, "mae", False)


# ---- a method: the biases of the backbone and the head (BitFit)

BIASES = Method(("backbone/.*/bias", "head/.*"), network=None, adapts=False, lr=1e-3)


def install(setitem: Callable[[dict, str, Any], Any] = dict.__setitem__) -> None:
    """Put each entry into its table."""
    setitem(families.FAMILIES, "toy", TOY)
    setitem(families.HEADS, "mean", mean_head)
    setitem(hyper.CONDITIONERS, "shared_vector", shared_vector)
    setitem(objectives.OBJECTIVES, "absolute_error", absolute_error)
    setitem(model.METHODS, "biases", BIASES)


if __name__ == "__main__":
    install()
    for argv in json.load(sys.stdin):
        if code := cli.main(argv):
            sys.exit(code)
