"""What the bare backbone makes of a row: each row has an adapter of its own."""

import jax
import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.hyper.conditioners.vectors import entry, unit_rms
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params

POOLED = "pooled"  # the entry of a batch that the model adds


def instance(settings: Settings, sizes: Sizes) -> Conditioner:
    """The states `batch["pooled"]` (B, D), at unit RMS; U = B.

    The model computes them, see `pooled`. Ivison and Peters (2022), "Hyperdecoders".
    """
    del settings

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del params, key
        x_BD = entry(batch, POOLED, "instance", [(sizes.hidden,)])
        return Conditions(unit_rms(x_BD)[:, None])

    reads = {POOLED: (sizes.hidden,)}
    return Conditioner(lambda key: {}, apply, reads, sizes.hidden)


def pooled(hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Mean of hidden states over the tokens of each row, (B, D), at least float32.

    No gradient goes back through it. A row without tokens gives 0.
    """
    wide = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    mask_BT1 = mask_BT[..., None].astype(wide)
    sum_BD = jnp.sum(hidden_BTD.astype(wide) * mask_BT1, axis=1)
    count_B1 = jnp.maximum(jnp.sum(mask_BT1, axis=1), 1)
    return jax.lax.stop_gradient(sum_BD / count_B1)
