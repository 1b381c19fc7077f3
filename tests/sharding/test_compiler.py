"""XLA's options for CPU."""

import jax

from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.sharding import compiler
from hypelora_jax.sharding.mesh import make_mesh


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
