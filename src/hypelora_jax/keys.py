"""Named keys: every random stream folds its name into one base key."""

import zlib

import jax

from hypelora_jax.types import Key


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
