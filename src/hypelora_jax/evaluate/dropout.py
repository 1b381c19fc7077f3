"""Members that draw again what training drew: dropout masks, or a random A.

MC dropout is the mean over masks (Gal and Ghahramani 2016, section 3). With a random A,
the hyper-network saw another A at each training step, so any draw of A gives a model
that it was trained to complete.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import named_key
from hypelora_jax.model import Model
from hypelora_jax.sharding import compiler, rules
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.train.scoring import Forward, pinned, rows_of
from hypelora_jax.types import Adapter, Batch, Key, Params

Draws = Callable[[int], Forward]  # the k-th member's functions, for one pass of data


def masks(settings: Settings, config: EncoderConfig, task: Task, mesh: Mesh) -> Draws:
    """Members of MC dropout: the model with the rate `uncertainty.dropout` everywhere.

    Each member draws a mask for every batch. The dropout of the hyper-network and of
    the conditions is drawn once per member, as is a `noise` condition. This is off if A
    is random, because its key would also draw another A.
    """
    rate = settings.uncertainty.dropout
    if rate is not None:
        lora = dataclasses.replace(settings.lora, dropout=rate)
        hyper = dataclasses.replace(settings.hyper, dropout=rate)
        condition = dataclasses.replace(settings.condition, dropout=rate)
        # no fused kernel draws masks
        base = dataclasses.replace(
            settings.model, attention="xla", attention_dropout=None
        )
        settings = dataclasses.replace(
            settings, model=base, lora=lora, hyper=hyper, condition=condition
        )
        config = dataclasses.replace(
            config, hidden_dropout=rate, attention_dropout=rate, head_dropout=rate
        )
    model = model_lib.build(settings, config, task)
    of_a = settings.hyper.a == "random"
    return _draws(settings.seed, model, mesh, adapt=not of_a, rows=True)


def random_a(
    settings: Settings, config: EncoderConfig, task: Task, mesh: Mesh
) -> Draws:
    """Members of random A: each has one draw of A, and dropout is off everywhere.

    A `noise` condition is drawn like A.
    """
    hyper = dataclasses.replace(settings.hyper, dropout=0.0)
    condition = dataclasses.replace(settings.condition, dropout=0.0, jitter=0.0)
    still = dataclasses.replace(settings, hyper=hyper, condition=condition)
    model = model_lib.build(still, config, task)
    return _draws(settings.seed, model, mesh, adapt=True, rows=False)


def _draws(seed: int, model: Model, mesh: Mesh, *, adapt: bool, rows: bool) -> Draws:
    """Members that draw adapter, row dropout or both; they share one compilation."""

    def adapter(params: Params, alpha: jax.Array, conditions: Batch, key: Key):
        made = model.adapt(params, conditions, alpha, key if adapt else None)
        return pinned(made, mesh)  # each factor stays with the kernel it adapts

    def classify(params: Params, adapter: Adapter, batch: Batch, key: Key):
        return model.classify(params, adapter, batch, key if rows else None)

    adapter = jax.jit(rules.over(mesh, adapter))
    # logits are whole on every device, so that each process can read all rows
    classify = jax.jit(
        rules.over(mesh, classify),
        out_shardings=replicated(mesh),
        compiler_options=compiler.options(mesh),
    )

    def draw(k: int) -> Forward:
        # keys depend on seed, member and batch number, so every pass repeats the draws
        base = named_key(jax.random.key(seed), "uncertainty")
        key, batch_number = jax.random.fold_in(base, k), itertools.count()
        rows_key = named_key(key, "rows")
        return Forward(
            lambda params, alpha, conditions: adapter(
                params, alpha, conditions, named_key(key, "adapt")
            ),
            lambda params, own, batch: classify(
                params, own, batch, jax.random.fold_in(rows_key, next(batch_number))
            ),
            mesh,
            model.reads,
            rows_of(model),
        )

    return draw
