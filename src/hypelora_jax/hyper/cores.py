"""Factors A and B that all conditions share, and a small core that the network writes.

The delta of a site is A Z B, with one pair A (I, R) and B (R, O) for each site. A and B
are parameters, and the network writes Z: the R numbers of a diagonal, or R x R. What
leaves it is the pair of factors A Z and B.

At the start B is zero, and so is the delta. Z is the identity plus a generated part, of
which the head has a random kernel: with a zero kernel, no gradient would reach the
trunk after one step, since the core's own gradient is zero as long as B is. Half of the
variance of A Z is shared by all conditions and half is generated, so its entries have
the spread of LoRA's A.

Paper: Abdalla et al. 2025, "Zhyper", which writes deltas as B diag(z) A or B Z A.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypelora_jax.adapters.lora import draw_a
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.hyper import factors
from hypelora_jax.hyper.factors import OUTPUT_SCALE, Heads, Trunk
from hypelora_jax.keys import named_key
from hypelora_jax.types import Key, Lora, Params

Mix = Callable[[jax.Array, jax.Array], jax.Array]  # A Z, from a_LIR and Z - identity


def diagonal(trunk: Trunk, sites: Sites, rank: int) -> tuple[Trunk, Heads]:
    """A diag(z) B, where the network writes the R numbers z = 1 + out of a site."""

    def mix(a_LIR: jax.Array, out_LR: jax.Array) -> jax.Array:
        return a_LIR * (1 + out_LR[:, None])

    return trunk, _heads(sites, rank, trunk.width, rank, 1.0, mix)


def core(trunk: Trunk, sites: Sites, rank: int) -> tuple[Trunk, Heads]:
    """A Z B, where the network writes the R x R numbers Z = identity + out of a site.

    A site of lower rank (`lora.rank_pattern`) takes the first columns of A Z, which are
    made of all columns of A.
    """

    def mix(a_LIR: jax.Array, flat: jax.Array) -> jax.Array:
        out_LRS = flat.reshape(-1, rank, rank)
        return a_LIR + jnp.einsum("lir,lrs->lis", a_LIR, out_LRS)

    spread = 1 / math.sqrt(rank)  # a column of A Z is a sum of R generated terms
    return trunk, _heads(sites, rank, trunk.width, rank * rank, spread, mix)


def _heads(
    sites: Sites, rank: int, width: int, size: int, spread: float, mix: Mix
) -> Heads:
    """A head of `size` numbers for all sites, and the A and B that they share.

    `spread` is the standard deviation of the head's output at the start.
    """
    scale = factors.output_scale("z", width)

    def init(key: Key) -> Params:
        half = math.sqrt(0.5)
        drawn = jax.random.normal(named_key(key, "z"), (width, size))
        return {
            "a": {
                m: half * draw_a(named_key(key, f"a/{m}"), s, rank)
                for m, s in sites.items()
            },
            "b": {
                m: jnp.zeros((len(s.layers), rank, s.d_out)) for m, s in sites.items()
            },
            "z": {"kernel": spread / (scale * math.sqrt(width)) * drawn},
        }

    def write(params: Params, features_SF: jax.Array) -> Lora:
        out = factors.normalise(features_SF) @ params["z"]["kernel"] * scale
        lora, start = {}, 0
        for m, site in sites.items():
            own = out[start : start + len(site.layers)]
            a_LIR, b_LRO = mix(params["a"][m], own), params["b"][m]
            # the same speed as a generated B has
            lora[m] = {"a": a_LIR, "b": factors.soften(OUTPUT_SCALE["b"] * b_LRO)}
            start += len(site.layers)
        return lora

    return Heads(init, write)
