"""A tiny model and batch for the laws: real code, sizes that compile in a blink."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax import families
from hypelora_jax import model as model_lib
from hypelora_jax.calibration.arrays import share, total
from hypelora_jax.config.adapter_sections import HeadConfig
from hypelora_jax.config.settings import Settings, from_dict
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.families import preset
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.types import Backbone, Head

CONFIG = dataclasses.replace(preset("tiny"), layers=3)
CLASSES = 3
TRANSFORMER = {"width": 16, "heads": 2, "depth": 1, "ff": 24, "cond_dim": 5}
MLP = {"widths": (11, 7), "cond_dim": 5}


def encoder(config: EncoderConfig, **options) -> Backbone:
    return families.of(config).backbone(config, **options)


def head(config: EncoderConfig, outputs: int, dtype: str = "float32") -> Head:
    return families.head(HeadConfig(), config, unnamed(outputs), dtype=dtype)


def settings(method: str = "hyper_mlp", **sections: dict) -> Settings:
    """Settings with a small hyper-network; sections override fields."""
    hyper = TRANSFORMER if method == "hyper_transformer" else MLP
    sections["hyper"] = hyper | sections.get("hyper", {})
    sections["lora"] = {"rank": 2, "alpha": 4.0} | sections.get("lora", {})
    return from_dict({"method": method, **sections})


def base(seed: int = 0, classes: int = CLASSES) -> dict:
    fresh = jax.jit(_base, static_argnums=1)(jax.random.key(seed), classes)
    return shaken(fresh, by=0.1)  # at 0.02 no adapter would show in the logits


def _base(key: jax.Array, classes: int) -> dict:
    return {
        "backbone": encoder(CONFIG).init(key),
        "head": head(CONFIG, classes).init(key),
    }


def model(config: Settings, classes: int = CLASSES, tasks: int = 0) -> model_lib.Model:
    return model_lib.build(config, CONFIG, unnamed(classes)._replace(tasks=tasks))


def params(config: Settings, built: model_lib.Model, seed: int = 0) -> dict:
    return built.init(jax.random.key(seed), base(seed))


def forward(
    built: model_lib.Model, params: dict, batch: dict, alpha=0.0, key=None
) -> jax.Array:
    """Logits (B, Y) of a batch: the adapter is made and then used."""
    adapter = built.adapt(params, batch, alpha, key)
    return built.classify(params, adapter, batch, key)


def predict(
    built: model_lib.Model, params: dict, batch: dict, alpha=0.0, key=None
) -> jax.Array:
    """`forward` as one program."""
    run = jax.jit(functools.partial(forward, built))
    return run(params, batch, alpha, key)


@functools.partial(jax.jit, static_argnames=("seed", "by"))
def shaken(tree: dict, seed: int = 1, by: float = 0.05) -> dict:
    """The tree with noise on every leaf, so that no delta is zero."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        x + by * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def batch(rows: int = 4, tokens: int = 9, seed: int = 0) -> dict:
    """Random tokens of unequal lengths, padded with the model's pad id."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, CONFIG.vocab, (rows, tokens))
    lengths = rng.integers(3, tokens + 1, rows)
    mask = np.arange(tokens)[None, :] < lengths[:, None]
    ids = np.where(mask, ids, CONFIG.pad_id)
    ids[:, 0] = 0
    return {
        "ids": jnp.asarray(ids, jnp.int32),
        "mask": jnp.asarray(mask),
        "types": jnp.zeros((rows, tokens), jnp.int32),
        "label": jnp.asarray(rng.integers(0, CLASSES, rows), jnp.int32),
        "weight": jnp.ones(rows, jnp.float32),
    }


def mean(x_B: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Weighted mean over examples; 0 where all weights are 0."""
    return share(total(x_B, weight_B), jnp.sum(weight_B.astype(x_B.dtype)))
