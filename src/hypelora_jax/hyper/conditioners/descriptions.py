"""Descriptions of the sites: one vector for each slot of the hyper-network.

A description says which site a slot is for. It does not depend on the data.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.hyper.factors import num_sites
from hypelora_jax.keys import named_key
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def learned(sites: Sites, slots: int, width: int, members: int = 1) -> Conditioner:
    """One learned embedding per slot, drawn from N(0, 1) as in the reference (A.1).

    With several members, each member has its embeddings, (K, S, C), and
    `batch["row"]`, int32 (B,), gives the member of each row.
    """
    del sites
    shape = (slots, width) if members == 1 else (members, slots, width)

    def init(key: Key) -> Params:
        return {"embedding": jax.random.normal(key, shape)}

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del key
        embedding = params["embedding"]  # (S, C) of one member, or (K, S, C)
        if embedding.ndim == 2:
            return Conditions(embedding[None])
        return Conditions(embedding, batch["row"])

    return Conditioner(init, apply, {}, width)


def onehot(sites: Sites, slots: int, width: int, members: int = 1) -> Conditioner:
    """The S unit vectors of width S; there is nothing to learn."""
    del sites, width, members

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del params, batch, key
        return Conditions(jnp.eye(slots)[None])

    return Conditioner(lambda key: {}, apply, {}, slots)


def layer_module(sites: Sites, slots: int, width: int, members: int = 1) -> Conditioner:
    """The sum of a learned embedding of the layer and one of the module.

    If a site has two slots, for A and for B, an embedding of the half is added. The sum
    starts from N(0, 1), as `learned` does. Mahabadi et al. (2021), "HyperFormer++".
    """
    del members
    parts = _places(sites, slots)

    def init(key: Key) -> Params:
        scale = 1 / math.sqrt(len(parts))
        return {
            name: scale * jax.random.normal(named_key(key, name), (at.max() + 1, width))
            for name, at in parts.items()
        }

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del batch, key
        # in the order of `parts`, since jit and checkpoints sort the keys of a dict
        sites_SC = sum(params[name][at] for name, at in parts.items())
        return Conditions(jnp.asarray(sites_SC)[None])

    return Conditioner(init, apply, {}, width)


def _places(sites: Sites, slots: int) -> dict[str, np.ndarray]:
    """Index of layer, module and half of each slot (S,); slots are module-major."""
    pairs = [(m, i) for m, site in enumerate(sites.values()) for i in site.layers]
    module, layer = np.array(pairs).T
    known = np.unique(layer)  # ascending; a network may write some layers only
    halves = slots // num_sites(sites)
    out = {
        "layer": np.tile(np.searchsorted(known, layer), halves),
        "module": np.tile(module, halves),
    }
    return out | ({"half": np.repeat([0, 1], len(pairs))} if halves > 1 else {})


Describe = Callable[[Sites, int, int, int], Conditioner]  # sites, S, width, members
# Descriptions of sites by the name in config.hyper.cond.
SITES: dict[str, Describe] = {
    "learned": learned,
    "onehot": onehot,
    "layer_module": layer_module,
}
