"""Named keys: every random stream is `fold_in` of one base key and a name."""

import zlib

import jax

from hypelora_jax.types import Key


def fold_in(key: Key, number: jax.Array | int) -> Key:
    """Key of that number: `jax.random.fold_in`, of each key where there are several."""
    if key.ndim:
        return jax.vmap(lambda one: fold_in(one, number))(key)
    return jax.random.fold_in(key, number)


def named_key(key: Key, name: str) -> Key:
    """Key of the stream `name`: depends on the name, not on the order of calls."""
    return fold_in(key, zlib.crc32(name.encode()))


def named_keys(key: Key, step: jax.Array | int, *names: str) -> dict[str, Key]:
    """One key for each named stream at a step."""
    at_step = jax.random.fold_in(key, step)
    return {name: named_key(at_step, name) for name in names}


def maybe(key: Key | None, name: str) -> Key | None:
    """The named key, or None where there is no randomness."""
    return None if key is None else named_key(key, name)
