"""No condition: the hyper-network reads the descriptions of the sites alone."""

import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def none(settings: Settings, sizes: Sizes) -> Conditioner:
    """One condition, whose vector has width 0."""
    del settings, sizes

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del params, batch, key
        return Conditions(jnp.zeros((1, 1, 0)))

    return Conditioner(lambda key: {}, apply, {}, 0)
