"""A hyper-network from its parts: mode of A, trunk, form of the output, blending."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import BlendConfig, HyperConfig
from hypelora_jax.errors import UserError
from hypelora_jax.hyper import cores, factors, shared_heads
from hypelora_jax.hyper.factors import Heads, Trunk
from hypelora_jax.keys import maybe, named_key
from hypelora_jax.types import HyperNet, Key, Lora, Params

# A form of the output. It may add layers to the trunk that it gets, and returns it.
Form = Callable[[Trunk, Sites, int], tuple[Trunk, Heads]]  # (trunk, sites, rank)


def input_width(config: HyperConfig, sites: Sites, rank: int, cond_width: int) -> int:
    """Width of the trunk's input: C, plus d_in * rank if A is an input.

    Raises:
      UserError: A is an input, but it is generated or the sites differ in d_in.
    """
    if not config.a_input:
        return cond_width
    if config.a == "generated":
        raise UserError(
            "config.hyper.a_input needs hyper.a=fixed or random, but hyper.a is "
            "generated; a generated A cannot be its own input"
        )
    if len({s.d_in for s in sites.values()}) > 1:
        raise UserError(
            "config.hyper.a_input needs one d_in for all sites, but they have "
            f"{ {m: s.d_in for m, s in sites.items()} }; adapt fewer modules"
        )
    return cond_width + next(iter(sites.values())).d_in * rank


def of_trunk(
    trunk: Trunk,
    config: HyperConfig,
    blending: BlendConfig,
    sites: Sites,
    rank: int,
    two_halves: bool,
) -> HyperNet:
    """Build a HyperNet from a trunk.

    With `two_halves` each site has two slots, for A in the first half and for B in the
    second (the Transformer with generated A in the form `full`). Otherwise one slot
    writes both.
    """
    n = factors.num_sites(sites)
    trunk, heads = _form(config, two_halves)(trunk, sites, rank)

    def init(key: Key) -> Params:
        params = {
            "trunk": trunk.init(named_key(key, "trunk")),
            "out": heads.init(named_key(key, "out")),
        }
        if config.a != "generated":  # under `random`, evaluation uses this A
            params["a"] = factors.draw_all_a(named_key(key, "a"), sites, rank, config)
        if start := factors.init_blend(named_key(key, "init"), sites, rank, blending):
            params["init"] = start
        return params

    def frozen_a(params: Params, key: Key | None) -> dict | None:
        if config.a == "random" and key is not None:
            drawn = factors.draw_all_a(named_key(key, "random_a"), sites, rank, config)
            return jax.tree.map(
                lambda new, old: new.astype(old.dtype), drawn, params["a"]
            )
        return params.get("a")

    def apply(
        params: Params,
        cond_SC: jax.Array,
        alpha: jax.Array | float,
        key: Key | None = None,
    ) -> Lora:
        a = frozen_a(params, key)
        if config.a_input and a is not None:  # `input_width` refuses a generated A
            # in the order of `sites`, since jit and checkpoints sort the keys of a dict
            flat = [a[m].reshape(a[m].shape[0], -1) for m in sites]
            cond_SC = jnp.concatenate([cond_SC, jnp.concatenate(flat)], axis=-1)
        features = trunk.apply(params["trunk"], cond_SC, maybe(key, "trunk"))
        lora = heads.write(params["out"], features)
        if a is not None:
            lora = {m: {"a": a[m], "b": f["b"]} for m, f in lora.items()}
        return factors.blend_all(lora, params.get("init", {}), alpha, blending)

    return HyperNet(init, apply, 2 * n if two_halves else n)


def _form(config: HyperConfig, two_halves: bool) -> Form:
    """Return the form that `config.outputs` names."""
    forms: dict[str, Form] = {
        "full": functools.partial(_full, config, two_halves),
        "shared": shared_heads.shared,
        "rows": shared_heads.rows,
        "diagonal": cores.diagonal,
        "core": cores.core,
    }
    return forms[config.outputs]


def _full(
    config: HyperConfig, two_halves: bool, trunk: Trunk, sites: Sites, rank: int
) -> tuple[Trunk, Heads]:
    """A head for A and a head for B of each shape: always B, and A if generated."""
    one_head = two_halves and config.init == "reference"
    offset = factors.num_sites(sites) if two_halves else 0  # from a site's slot to B's
    zero = config.init == "zero"

    def init(key: Key) -> Params:
        return factors.init_heads(key, sites, rank, trunk.width, config, one_head)

    def write(heads: Params, features_SF: jax.Array) -> Lora:
        if zero:
            features_SF = factors.normalise(features_SF)
        lora: Lora = {m: {} for m in sites}
        for g in factors.groups(sites):
            head, count = heads[g.name], len(g.slots)
            made = {}
            if config.a == "generated":
                own = head.get("ab", head.get("a"))
                flat = factors.rows(own, features_SF[g.slots], "a", zero)
                made["a"] = flat.reshape(count, g.d_in, rank)
            own = head.get("ab", head.get("b"))
            flat = factors.rows(own, features_SF[g.slots + offset], "b", zero)
            made["b"] = flat.reshape(count, rank, g.d_out)
            factors.collect(lora, made, g, sites)
        return lora

    return trunk, Heads(init, write)
