"""What the rows were measured on: the machine, the versions, the rate of products."""

import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from hypelora_jax.errors import UserError

PACKAGES = (
    "hypelora_jax jax jaxlib numpy optax flax torch transformers peft tokenizers "
    "torchmetrics netcal"
).split()
# Peak FLOP/s in bfloat16, dense, by JAX's name of the device; NVIDIA's data sheets.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
}
SIDE = 2048  # of the square product that stands for the machine's rate


def cores() -> int:
    """Cores that this process may use; torch gets as many threads as JAX."""
    return len(os.sched_getaffinity(0))


def require(platform: str) -> None:
    """Check that JAX finds devices of a platform.

    Raises:
      UserError: it finds others.
    """
    import jax

    if (found := jax.default_backend()) != platform:
        raise UserError(
            f"the rows `device` need a {platform.upper()}, but JAX finds a "
            f"{found.upper()}; run them where `hypelora doctor` lists one"
        )


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system and JAX's devices."""
    import jax

    return {
        "cpu": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cores(),
        "memory_gib": round(_memory() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are measured, as far as installed."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def _line(path: str, start: str) -> str:
    file = Path(path)
    lines = file.read_text().splitlines() if file.exists() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(start)]
    return found[0] if found else ""


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def _products() -> dict[str, Any]:
    """Functions that multiply two square float32 matrices, by library."""
    import jax
    import torch

    torch.set_num_threads(cores())
    a, b = (jax.random.normal(jax.random.key(i), (SIDE, SIDE)) for i in (0, 1))
    own = jax.jit(jax.numpy.matmul)
    c, d = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return {"jax": lambda: own(a, b).block_until_ready(), "torch": lambda: c @ d}


def product_rates(count: int = 5) -> dict[str, float]:
    """FLOP/s of a large square product now, by library: the best of `count` turns."""
    from benchmarks import timing

    ways = _products()
    for way in ways.values():
        way()
    times = {name: timing.Times([], []) for name in ways}
    timing.rounds(ways, count, times)
    return {name: 2 * SIDE**3 / min(x.wall) for name, x in times.items()}
