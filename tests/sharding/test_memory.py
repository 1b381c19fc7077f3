"""Memory that a process keeps between steps, and gives back after compiling."""

import subprocess
import sys

import process

from hypelora_jax.sharding import memory

# Prints how many pages a program with 100 MB of temporaries takes anew, at the least.
# Now and then a call begins before the last one's memory is free.
PAGES = """
import resource, sys
from hypelora_jax.sharding import memory
if sys.argv[1] == "keep":
    memory.keep()
import jax, jax.numpy as jnp

@jax.jit
def work(x):
    y = jnp.sin(x[:, None] * x[None, :])
    return (y @ x).sum()

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = jnp.ones(5000)
print(min(pages() for _ in range(10)))
"""


# Prints the pages in use before blocks are freed, after that, and after `trim`.
FREED = """
import numpy as np
from hypelora_jax.sharding import memory
memory.keep()

def pages():
    return int(open("/proc/self/statm").read().split()[1])

blocks = [np.ones(20_000) for _ in range(1000)]
last, before = blocks[-1], pages()
del blocks
freed = pages()
memory.trim()
print(before, freed, pages())
"""


def told(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.check_output(command, env=process.ENV, text=True)


def test_a_process_that_keeps_its_memory_takes_no_new_pages():
    assert int(told(PAGES, "return")) > 10_000  # the reading works
    assert int(told(PAGES, "keep")) < 1_000


def test_freed_memory_is_kept_until_it_is_given_back():
    before, freed, given = map(int, told(FREED).split())
    assert freed > before - 1000, "it is kept"
    assert given < before - 30_000, "160 MB are 39,000 pages"


def test_where_there_is_no_glibc_nothing_happens(monkeypatch):
    asked = []

    class Library:
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Library())
    memory.keep()
    memory.trim()
    assert asked == ["mallopt", "malloc_trim"], "each is looked for once"
