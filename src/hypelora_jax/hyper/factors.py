"""LoRA factors from features of the slots: output heads, layouts and blending.

Slots are module-major. A slot is the position of (module, layer) in the list of sites,
with modules in canonical order and layers in the order of the hyper-network's list.
Sites with the same (d_in, d_out) share an output head. A flat row of a head is B viewed
as (R, O), or A viewed as (I, R), both row-major as in the reference (METHOD A.2, A.3).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.adapters.lora import draw_a, uniform
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import BlendConfig, HyperConfig
from hypelora_jax.keys import named_key
from hypelora_jax.types import Init, Key, Lora, Params


class Trunk(NamedTuple):
    """Conditioning to features: `apply(params, cond_SC, key=None) -> features_SF`."""

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]
    width: int


class Heads(NamedTuple):
    """Features to compact factors: `write(params, features)`; `init` draws `params`."""

    init: Init
    write: Callable[[Params, jax.Array], Lora]


class Group(NamedTuple):
    """Sites of one shape: their modules, and the slots they take."""

    name: str
    d_in: int
    d_out: int
    modules: tuple[str, ...]
    slots: np.ndarray


def num_sites(sites: Sites) -> int:
    """N: number of (layer, module) pairs."""
    return sum(len(s.layers) for s in sites.values())


def groups(sites: Sites) -> list[Group]:
    """Group the sites by shape, each group with its slots in order."""
    members: dict[tuple[int, int], list] = {}
    start = 0
    for module, site in sites.items():
        slots = np.arange(start, start + len(site.layers))
        members.setdefault((site.d_in, site.d_out), []).append((module, slots))
        start += len(site.layers)
    return [
        Group(
            f"{i}x{o}", i, o, tuple(m for m, _ in g), np.concatenate([s for _, s in g])
        )
        for (i, o), g in members.items()
    ]


def linear_init(key: Key, fan_in: int, fan_out: int) -> Params:
    """Torch's nn.Linear default: weight and bias U(+-1/sqrt(fan_in))."""
    return {
        "kernel": uniform(named_key(key, "kernel"), (fan_in, fan_out), fan_in),
        "bias": uniform(named_key(key, "bias"), (fan_out,), fan_in),
    }


def init_heads(
    key: Key, sites: Sites, rank: int, width: int, config: HyperConfig, one_head: bool
) -> Params:
    """Initialise the output heads of every group as `config.init` says.

    `reference` is torch's default. `zero` makes the delta zero at step 0 but lets the
    factors train: B's kernel and bias are zero. Half the variance of A comes from a
    LoRA draw in each site's bias and half is generated, so that its entries have the
    spread of LoRA's.
    """
    make = _reference_heads if config.init == "reference" else _zero_heads
    return {
        g.name: make(named_key(key, g.name), g, rank, width, config.a, one_head)
        for g in groups(sites)
    }


def _reference_heads(
    key: Key, g: Group, rank: int, width: int, a: str, one_head: bool
) -> Params:
    if one_head:  # the Transformer's one head writes A for some slots, B for others
        if g.d_in != g.d_out:
            raise ValueError("one head for A and B needs square sites")
        return {"ab": linear_init(named_key(key, "ab"), width, rank * g.d_out)}
    heads = {"b": linear_init(named_key(key, "b"), width, rank * g.d_out)}
    if a == "generated":
        heads["a"] = linear_init(named_key(key, "a"), width, g.d_in * rank)
    return heads


def _zero_heads(
    key: Key, g: Group, rank: int, width: int, a: str, one_head: bool
) -> Params:
    del one_head  # one zero head would make A and B zero, and so its gradient, for ever
    size_b, size_a = rank * g.d_out, g.d_in * rank
    heads = {"b": {"kernel": jnp.zeros((width, size_b)), "bias": jnp.zeros((size_b,))}}
    if a == "generated":
        shape = (len(g.slots), size_a)
        half = math.sqrt(0.5)
        heads["a"] = {
            # normalised features times output_scale then give A the spread of a LoRA
            # draw, U(+-1/sqrt(d_in)), before `half`
            "kernel": half
            / (math.sqrt(g.d_in) * output_scale("a", width))
            * uniform(named_key(key, "kernel"), (width, size_a), width),
            "bias": half * uniform(named_key(key, "draw"), shape, g.d_in),
        }
    return heads


# Scales of the heads' output in the default initialisation, to be divided by the width.
# One Adam step of size lr changes every kernel entry by about lr, and the output by up
# to lr * width times the scale. Divided by the width, the factors move by a multiple of
# lr that does not depend on the width. B needs the larger scale, as in LoRA+ (Hayou et
# al. 2024, section 5). A is also moved by its bias, so a small scale is enough. z is
# the core of `cores.py`, which starts near the identity and has to move as far as B.
OUTPUT_SCALE = {"a": 2.0, "b": 12.0, "z": 12.0}
KNEE = 0.02  # entries of B beyond this grow like a logarithm; see `soften`


def output_scale(factor: str, width: int) -> float:
    """Multiplier of the output of the head of "a", "b" or "z", for a trunk's width.

    With 1 / sqrt(width) for both, learning rates of 1e-3 and more did not learn on
    every seed. With 3 / width and no `soften`, rates of 3e-4 and less hardly moved.
    """
    return OUTPUT_SCALE[factor] / width


def soften(b: jax.Array) -> jax.Array:
    """KNEE * asinh(b / KNEE), which is b near zero and grows like log(b) beyond KNEE.

    A step moves a large entry less, so learning rates that differ by a factor of thirty
    all train: low rates on the steep part, high rates on the flat part.
    """
    return KNEE * jnp.arcsinh(b / KNEE)


def normalise(x_SF: jax.Array) -> jax.Array:
    """Normalise features to zero mean and unit variance over F, without affine part."""
    dtype = jnp.promote_types(x_SF.dtype, jnp.float32)
    x = x_SF.astype(dtype)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    return x.astype(x_SF.dtype)


def rows(
    head: Params, features_SF: jax.Array, factor: str, zero_init: bool
) -> jax.Array:
    """Compute flat output rows (S, size) of the head of one factor, "a" or "b"."""
    out = features_SF @ head["kernel"]
    if zero_init:
        out = out * output_scale(factor, features_SF.shape[-1])
    bias = head["bias"]
    out = out + (bias if bias.ndim == 2 else bias[None, :])
    return soften(out) if zero_init and factor == "b" else out


def split(stacked: jax.Array, group: Group, sites: Sites) -> dict[str, jax.Array]:
    """Split an array (slots of the group, ...) into the modules of the group."""
    sizes = [len(sites[m].layers) for m in group.modules]
    parts = jnp.split(stacked, np.cumsum(sizes)[:-1])
    return dict(zip(group.modules, parts, strict=True))


def collect(lora: Lora, made: dict[str, jax.Array], group: Group, sites: Sites) -> None:
    """Add the stacked factors {"a", "b"} of a group to those of its modules."""
    for name, stacked in made.items():
        for module, x in split(stacked, group, sites).items():
            lora[module][name] = x


def draw_all_a(key: Key, sites: Sites, rank: int, config: HyperConfig) -> Params:
    """Draw A of every site for the modes `fixed` and `random`, (L, I, R) per module.

    The reference draws with fan-in r, 9.8 times LoRA's scale at d = 768 (METHOD A.5).
    """
    fan_in = rank if config.a_init == "reference" else None
    return {m: draw_a(named_key(key, m), s, rank, fan_in) for m, s in sites.items()}


def init_blend(key: Key, sites: Sites, rank: int, config: BlendConfig) -> Params:
    """Draw frozen factors to blend with: A as in LoRA, B zero or drawn like A."""

    def b(module: str) -> jax.Array:
        site = sites[module]
        shape = (len(site.layers), rank, site.d_out)
        if config.b_init == "zero":
            return jnp.zeros(shape)
        return uniform(named_key(key, f"b/{module}"), shape, site.d_in)

    out: Params = {}
    if config.a != "replace":
        out["a"] = {
            m: draw_a(named_key(key, f"a/{m}"), s, rank) for m, s in sites.items()
        }
    if config.b != "replace":
        out["b"] = {m: b(m) for m in sites}
    return out


def blend(
    mode: str, made: jax.Array, start: jax.Array, alpha: jax.Array | float
) -> jax.Array:
    """Blend a generated and an initial factor (METHOD A.6).

    add: (1 - alpha) made + alpha start; multiply: made * start.
    """
    if mode == "multiply":
        return made * start
    return (1 - alpha) * made + alpha * start


def blend_all(
    lora: Lora, init: Params, alpha: jax.Array | float, config: BlendConfig
) -> Lora:
    """Blend each factor of each module by its mode."""
    modes = {"a": config.a, "b": config.b}
    return {
        m: {
            n: x if modes[n] == "replace" else blend(modes[n], x, init[n][m], alpha)
            for n, x in f.items()
        }
        for m, f in lora.items()
    }
