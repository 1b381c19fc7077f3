"""One head for A and B: several passes through the last layer of the network.

A pass adds a learned embedding to the features of a site. It says what the pass writes:
A or B (`shared`), or one rank of A or B (`rows`). A residual layer follows, so that the
features of two passes differ by more than a constant. All passes and all sites of one
shape share one head.

Paper: Charakorn et al. 2025, "Text-to-LoRA", whose architectures M and S these are.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.adapters.lora import uniform
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.hyper import factors
from hypelora_jax.hyper.factors import Group, Heads, Trunk
from hypelora_jax.keys import named_key
from hypelora_jax.types import Key, Lora, Params


def shared(trunk: Trunk, sites: Sites, rank: int) -> tuple[Trunk, Heads]:
    """A pass for A and one for B; the head's width is rank * max(I, O)."""
    return _passes(trunk, 1), _heads(sites, rank, trunk.width, 1)


def rows(trunk: Trunk, sites: Sites, rank: int) -> tuple[Trunk, Heads]:
    """A pass for each rank of A and of B; the head's width is max(I, O)."""
    return _passes(trunk, rank), _heads(sites, rank, trunk.width, rank)


def _passes(trunk: Trunk, count: int) -> Trunk:
    """Add the passes to a trunk, which then returns normalised features (2, N, S, F).

    N is `count`, the passes for A, and for B. The layer is part of the trunk because it
    has to train at the trunk's rate: all sites read it.
    """
    width = trunk.width

    def init(key: Key) -> Params:
        layer = factors.linear_init(named_key(key, "passes"), width, width)
        factor_2F = jax.random.normal(named_key(key, "passes/factor"), (2, width))
        passes = {**layer, "factor": factor_2F}
        if count > 1:
            ranks = named_key(key, "passes/rank")
            passes["rank"] = jax.random.normal(ranks, (count, width))
        return {**trunk.init(key), "passes": passes}

    def apply(params: Params, cond_SC: jax.Array, key: Key | None = None) -> jax.Array:
        passes = params["passes"]
        body = {name: x for name, x in params.items() if name != "passes"}
        features_SF = factors.normalise(trunk.apply(body, cond_SC, key))
        embedding_2NF = passes["factor"][:, None]
        if "rank" in passes:
            embedding_2NF = embedding_2NF + passes["rank"][None]
        x_2NSF = features_SF[None, None] + embedding_2NF[:, :, None]
        x_2NSF = factors.normalise(x_2NSF)
        out_2NSF = x_2NSF @ passes["kernel"] + passes["bias"][None, None, None]
        return factors.normalise(x_2NSF + nn.gelu(out_2NSF, approximate=False))

    return Trunk(init, apply, width)


def _heads(sites: Sites, rank: int, width: int, count: int) -> Heads:
    """Heads that write rank / `count` ranks of a factor in a pass.

    The kernel is zero at the start. A's bias is a LoRA draw for each site and B's is
    zero, so that A is as in LoRA and B, and with it the delta, is zero. The first
    gradient reaches the kernel through B.
    """
    ranks = rank // count  # of a pass

    def init(key: Key) -> Params:
        return {g.name: one(named_key(key, g.name), g) for g in factors.groups(sites)}

    def one(key: Key, g: Group) -> Params:
        draw = uniform(key, (len(g.slots), g.d_in * rank), g.d_in)
        return {
            "ab": {"kernel": jnp.zeros((width, ranks * max(g.d_in, g.d_out)))},
            "a": {"bias": draw},
            "b": {"bias": jnp.zeros((rank * g.d_out,))},
        }

    def write(heads: Params, features_2NSF: jax.Array) -> Lora:
        lora: Lora = {m: {} for m in sites}
        for g in factors.groups(sites):
            head, slots = heads[g.name], len(g.slots)
            for_a, for_b = (x_NSF[:, g.slots] for x_NSF in features_2NSF)
            made = _scaled(head, for_a, "a", ranks * g.d_in)
            a_NSIR = made.reshape(count, slots, g.d_in, ranks)
            a_SIR = jnp.moveaxis(a_NSIR, 0, 2).reshape(slots, g.d_in, rank)
            made = _scaled(head, for_b, "b", ranks * g.d_out)
            b_NSRO = made.reshape(count, slots, ranks, g.d_out)
            b_SRO = jnp.moveaxis(b_NSRO, 0, 1).reshape(slots, rank, g.d_out)
            a_bias = head["a"]["bias"].reshape(slots, g.d_in, rank)
            b_bias = head["b"]["bias"].reshape(1, rank, g.d_out)
            both = {"a": a_SIR + a_bias, "b": factors.soften(b_SRO + b_bias)}
            factors.collect(lora, both, g, sites)
        return lora

    return Heads(init, write)


def _scaled(head: Params, features_NSF: jax.Array, factor: str, size: int) -> jax.Array:
    """Compute the first `size` outputs of a head, with the scale of a factor."""
    out = features_NSF @ head["ab"]["kernel"][:, :size]
    return out * factors.output_scale(factor, features_NSF.shape[-1])
