"""XLA's options for CPU, and memory that a process keeps."""

import subprocess
import sys

import jax
import process

from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.sharding import compiler
from hypelora_jax.sharding.mesh import make_mesh

# Prints how many pages a program with 100 MB of temporaries takes anew, at the least.
# Now and then a call begins before the last one's memory is free.
PAGES = """
import resource, sys
from hypelora_jax import cli
if sys.argv[1] == "keep":
    cli.keep_memory()
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


def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_programs_on_cpu_get_options_that_this_jaxlib_knows():
    found = compiler.options(mesh())
    assert found
    assert int(jax.jit(lambda: 1, compiler_options=found)()) == 1


def test_options_that_a_jaxlib_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "_CPU", {"xla_no_such_option": "1"})
    compiler._known.cache_clear()
    try:
        assert compiler.options(mesh()) == {}
    finally:
        compiler._known.cache_clear()


def test_a_process_that_keeps_its_memory_takes_no_new_pages():
    def pages(how):
        command = [sys.executable, "-c", PAGES, how]
        return int(subprocess.check_output(command, env=process.ENV, text=True))

    assert pages("return") > 10_000  # the reading works
    assert pages("keep") < 1_000
