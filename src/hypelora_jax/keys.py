"""Named keys: every random stream folds its name into one base key.

A key also says how its numbers are drawn. The keys of a run are JAX's default,
threefry; `mask_key` turns one into a key whose dropout masks cost almost nothing.
"""

import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

from hypelora_jax.types import Key

# More numbers than this of one key would repeat, so their first axis gets keys.
MOST = 2**32


def fold_in(key: Key, number: jax.Array | int) -> Key:
    """Fold a number into a key, or into each key of an array of keys."""
    if key.ndim:
        return jax.vmap(lambda one: fold_in(one, number))(key)
    return jax.random.fold_in(key, number)


def named_key(key: Key, name: str) -> Key:
    """Return the key of the stream `name`, which does not depend on earlier calls."""
    # crc32, because Python's hash of a string differs from process to process
    return fold_in(key, zlib.crc32(name.encode()))


def named_keys(key: Key, step: jax.Array | int, *names: str) -> dict[str, Key]:
    """Return one key for each named stream at a step.

    The base key never changes; the step is folded in, so that a run which resumes at a
    step draws what it would have drawn without the interruption.
    """
    at_step = jax.random.fold_in(key, step)
    return {name: named_key(at_step, name) for name in names}


def maybe(key: Key | None, name: str) -> Key | None:
    """Return the named key, or None if `key` is None, that is, without randomness."""
    return None if key is None else named_key(key, name)


def mask_key(key: Key, masks: str, lone_accelerator: bool = False) -> Key:
    """Return a key for dropout that starts from a threefry key.

    Args:
      key: a threefry key, or an array of them.
      masks: what draws from the returned key. `hash` is a hash of key and position:
        nothing is stored, each device hashes only its own rows, and every platform
        draws the same. `hardware` is XLA's generator (JAX's rbg), of which every device
        draws the whole array. `threefry` returns the key as it is. `auto` is
        `hardware` on a lone GPU or TPU, else `hash`.
      lone_accelerator: whether the computation runs on one device that is no CPU.
    """
    if masks == "auto":
        masks = "hardware" if lone_accelerator else "hash"
    if masks == "threefry":
        return key
    data = jax.random.key_data(key)
    if masks == "hash":
        return jax.random.wrap_key_data(data, impl=_HASH)
    return jax.random.wrap_key_data(jnp.concatenate([data, data], -1), impl="rbg")


def _hashed(key_data: jax.Array, counter: jax.Array) -> jax.Array:
    """Hash uint32 counters under two words of key.

    These are the three rounds of triple32 (C. Wellons, "hash prospector"), a bijection
    without measurable bias. The second word enters after the first round; otherwise
    the numbers of two keys would be the same ones in another order.
    """
    x = counter + key_data[0]
    x = (x ^ (x >> 17)) * jnp.uint32(0xED5AD4BB)
    x = (x ^ (x >> 11)) + key_data[1]
    x = x * jnp.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * jnp.uint32(0x31848BAB)
    return x ^ (x >> 14)


def _derived(key_data: jax.Array, number: jax.Array) -> jax.Array:
    """Return key data (..., 2) of numbers (...), unrelated to what the key draws."""
    other = jnp.uint32(0x9E3779B9)
    return jnp.stack(
        [
            _hashed(key_data ^ jnp.stack([other, jnp.uint32(0)]), number),
            _hashed(key_data ^ jnp.stack([jnp.uint32(0), other]), number),
        ],
        axis=-1,
    )


def _bits(key_data: jax.Array, bit_width: int, shape: Sequence[int]) -> jax.Array:
    """Draw unsigned integers of 8, 16, 32 or 64 bits."""
    size = math.prod(shape)
    if size > MOST:
        rows = _derived(key_data, jax.lax.iota(jnp.uint32, shape[0]))
        return jax.vmap(lambda row: _bits(row, bit_width, shape[1:]))(rows)
    if bit_width == 64:
        halves = _bits(key_data, 32, (2, *shape)).astype(jnp.uint64)
        return halves[0] << 32 | halves[1]
    counter, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        # one iota for each axis, so that a device counts only the rows it has
        at = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        counter, stride = counter + at * jnp.uint32(stride), stride * shape[axis]
    drawn = _hashed(key_data, counter)
    return (drawn >> (32 - bit_width)).astype(jnp.dtype(f"uint{bit_width}"))


def _split(key_data: jax.Array, shape: Sequence[int]) -> jax.Array:
    number = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _derived(~key_data, number)


_HASH = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: _derived(jnp.zeros(2, jnp.uint32), seed.astype(jnp.uint32)),
    split=_split,
    random_bits=_bits,
    fold_in=lambda key_data, number: _derived(key_data, jnp.uint32(number)),
    name="hypelora_hash",
    tag="hash",
)
