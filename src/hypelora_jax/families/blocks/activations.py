"""Activations by the names that Hugging Face gives them."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Phi(x), with erf because XLA's erfc is slower on CPU.

    It has a derivative of its own, which keeps only x for the backward pass.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # without the barrier the compiler keeps erf(x) of the forward pass in memory
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return (gradient * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)

ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
