"""MLP hyper-network: one slot per site, any number of layers (METHOD A.2)."""

from typing import cast

import flax.linen as nn
import jax

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import BlendConfig, HyperConfig
from hypelora_jax.hyper.factors import Trunk, linear_init, num_sites
from hypelora_jax.hyper.network import input_width, of_trunk
from hypelora_jax.keys import named_key
from hypelora_jax.types import HyperNet, Key, Network, Params


class Mlp(nn.Module):
    """Dense layers, each followed by an exact GELU."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x_SC: jax.Array) -> jax.Array:
        """Features (S, widths[-1])."""
        x = x_SC
        for i, width in enumerate(self.widths):
            x = nn.gelu(nn.Dense(width, name=f"fc{i}")(x), approximate=False)
        return x


def trunk(widths: tuple[int, ...], d_in: int) -> Trunk:
    """MLP trunk with torch's default initialisation."""
    module = Mlp(widths)

    def init(key: Key) -> Params:
        fans = zip((d_in, *widths), widths, strict=False)
        return {
            f"fc{i}": linear_init(named_key(key, f"fc{i}"), *fan)
            for i, fan in enumerate(fans)
        }

    def apply(params: Params, cond_SC: jax.Array, key: Key | None = None) -> jax.Array:
        del key  # no dropout, as in the reference
        return cast(jax.Array, module.apply({"params": params}, cond_SC))

    return Trunk(init, apply, widths[-1])


def mlp_hyper(
    config: HyperConfig, blending: BlendConfig, sites: Sites, rank: int, cond_width: int
) -> HyperNet:
    """MLP hyper-network for the given sites; one slot writes B and A of its site."""
    d_in = input_width(config, sites, rank, cond_width)
    return of_trunk(trunk(config.widths, d_in), config, blending, sites, rank, False)


def slots(config: HyperConfig, sites: Sites) -> int:
    """S: one slot per site."""
    del config
    return num_sites(sites)


NETWORK = Network(slots, mlp_hyper)
