"""Norms, computed in at least float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.families.blocks.dense import along_last, wide


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in at least float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised x, in x's dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        y = x.astype(wide(x.dtype))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * along_last(scale, y) + along_last(bias, y)).astype(x.dtype)
