"""AdamW with weight decay by path, rates of the head and trunk, and schedules."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from hypelora_jax import trees
from hypelora_jax.config.settings import BlendConfig, LossConfig, OptimConfig
from hypelora_jax.types import Params

Schedule = Callable[[jax.Array | int], jax.Array]  # of the step
# Kernels and factors; not biases, norms, embeddings and log_t.
DECAYED = re.compile(r".*/kernel|lora/.*/(a|b)|hyper/out/(a|b)/[^/]+")


def _float(step: jax.Array | int) -> jax.Array:
    return jnp.asarray(step, jnp.result_type(float))  # float64 where 64 bits are on


def learning_rate(config: OptimConfig, total_steps: int) -> Schedule:
    """Return the learning rate as a function of the step, 0 to total_steps - 1.

    Warm-up is linear from 0 over ceil(warmup * total_steps) steps. Then `linear` falls
    to 0 at total_steps, `cosine` falls along half a cosine, and `constant` stays.
    """
    warmup = math.ceil(round(config.warmup * total_steps, 6))
    rest = max(1, total_steps - warmup)
    shapes = {
        "linear": lambda left: left,
        "cosine": lambda left: 0.5 * (1 - jnp.cos(jnp.pi * left)),
        "constant": lambda left: jnp.ones_like(left),
    }
    shape = shapes[config.schedule]

    def rate(step: jax.Array | int) -> jax.Array:
        s = _float(step)
        left = jnp.clip((total_steps - s) / rest, 0, 1)
        return config.lr * jnp.where(s < warmup, s / max(1, warmup), shape(left))

    return rate


def blend_alpha(config: BlendConfig, total_steps: int, accumulate: int = 1) -> Schedule:
    """Return the weight of the initial factors as a function of the step.

    `linear` reaches exactly 0 at the last step. `reference` divides by the number of
    micro-batches although it counts optimizer steps, so with accumulation 2 it ends
    near half of alpha (METHOD A.7).
    """

    def at(step: jax.Array | int) -> jax.Array:
        s = _float(step)
        if config.anneal == "linear":
            last = max(total_steps - 1, 0)
            return config.alpha * jnp.clip((last - s) / max(1, last), 0, 1)
        if config.anneal == "reference":
            per_step = config.alpha / (total_steps * accumulate)
            return jnp.maximum(0.0, config.alpha - per_step * s)
        return jnp.full_like(s, config.alpha)

    return at


def loss_temperature(config: LossConfig, total_steps: int) -> Schedule | None:
    """Return the loss temperature as a function of the step; None without annealing.

    It goes from `temperature` at step 0 to exactly `temperature_end` at the share
    `anneal_share` of all steps, and then stays: `linear` in T, `geometric` in log T.
    The last steps let the logits settle before the learning rate is gone.
    """
    if config.anneal == "none":
        return None
    start, end = config.first_temperature, config.temperature_end
    moving = max(1, round(config.anneal_share * (total_steps - 1)))

    def at(step: jax.Array | int) -> jax.Array:
        done = jnp.clip(_float(step) / moving, 0, 1)
        if config.anneal == "geometric":
            return start ** (1 - done) * end**done
        return (1 - done) * start + done * end

    return at


def _own_rates(config: OptimConfig) -> optax.GradientTransformation:
    """Multiply the updates of the head and of the trunk by their rate / lr."""
    rates = {"head/": config.head_lr, "hyper/trunk/": config.trunk_lr}
    ratios = {p: rate / config.lr for p, rate in rates.items() if rate and config.lr}

    def scaled(path: str, x: jax.Array) -> jax.Array:
        ratio = next((r for p, r in ratios.items() if path.startswith(p)), 1.0)
        return x if ratio == 1.0 else x * ratio

    def update(updates: Params, state, params=None):
        del params
        return trees.map_with_path(scaled, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _decay_mask(config: OptimConfig) -> Callable[[Params], Params]:
    return lambda params: trees.map_with_path(
        lambda p, _: config.decay_all or bool(DECAYED.fullmatch(p)), params
    )


def optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Build AdamW (Loshchilov and Hutter 2019), clipped by the global gradient norm."""
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, _decay_mask(config)),
        _own_rates(config),
        optax.scale_by_learning_rate(learning_rate(config, total_steps)),
    )
