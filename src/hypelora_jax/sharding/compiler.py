"""Options of XLA for the programs on CPU; accelerators keep the defaults."""

import functools

import jax
from jax.sharding import Mesh

# XLA's YNNPACK fusions join products with the arithmetic around them and recompute
# much of it: without them a training step of MiniLM takes 0.9 of the time.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}


def options(mesh: Mesh) -> dict[str, str]:
    """Return `compiler_options` for `jax.jit` of programs that run on a mesh."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return dict(_CPU) if on_cpu and _known() else {}


@functools.cache
def _known() -> bool:
    """Whether this jaxlib knows the options, which are experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=_CPU)()
    except jax.errors.JaxRuntimeError:
        return False
    return True
