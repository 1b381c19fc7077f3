"""Memory of the process, where glibc manages it; elsewhere nothing happens."""

import ctypes
from typing import Any

# Numbers of glibc's mallopt: the parameters M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> None:
    """Keep freed memory in the process, to be called before JAX starts its threads.

    A program on CPU takes the memory of all its intermediate values at once and gives
    it back at its end. By default the system then clears each page anew in every step,
    which takes a fifth of a step's time (MiniLM, 32 rows of 128 tokens).
    """
    if mallopt := _glibc("mallopt"):
        mallopt(_ARENA_MAX, 1)  # the other arenas take large blocks from the system
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def trim() -> None:
    """Give freed memory back to the system, such as what the compiler has used."""
    if malloc_trim := _glibc("malloc_trim"):
        malloc_trim(0)


def _glibc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
