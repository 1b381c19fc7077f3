"""TPU slices by name, and the published figures of their chips.

Sources, read 2026-11-24: Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e" under
docs.cloud.google.com/tpu/docs. Interconnect is a chip's total in one direction; the
pages give 1,600, 4,800 and 3,200 Gbit/s. Newer pages give twice as much, as the sum of
both directions.
"""

import importlib.util
import os
import re
from typing import NamedTuple

import jax

from hypelora_jax.errors import UserError

GIB = 2**30


class Rates(NamedTuple):
    """Published peaks of one chip, per second."""

    flops: float  # in bfloat16
    hbm: float  # bytes
    ici: float  # bytes, sum of the links in one direction


class Chip(NamedTuple):
    """Published figures of one chip, or None if there are none."""

    hbm_bytes: int | None
    rates: Rates | None
    topologies: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()  # compiler options


_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# Chips with a SparseCore run the gathers of embeddings there. jaxlib 0.10.2 cannot read
# such a program back ("async-update instruction should have 1 operands"), so its bytes
# cannot be counted. With these options the gathers stay on the TensorCore.
_NO_SPARSECORE = (
    ("xla_tpu_offload_gather_to_sparsecore", "false"),
    ("xla_tpu_offload_all_supported_gathers_to_sparsecore", "false"),
)
CHIPS = {
    "v5e": Chip(16 * GIB, Rates(197e12, 819e9, 200e9), _2D),
    "v5p": Chip(95 * GIB, Rates(459e12, 2765e9, 600e9), _3D, _NO_SPARSECORE),
    "v6e": Chip(32 * GIB, Rates(918e12, 1638e9, 400e9), _2D, _NO_SPARSECORE),
}
CPU = Chip(None, None, ())  # fake devices: same program, but no published figures
ENVIRONMENT = {  # libtpu then asks neither metadata server nor network for a TPU
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is used, so plans may run side by side
}


class Topology(NamedTuple):
    """A slice: its name, its kind of chip, and one JAX device for each chip."""

    name: str
    chip: Chip
    devices: list


def known() -> str:
    """Return the known names in one line, for messages."""
    slices = "; ".join(
        f"{name}: {' '.join(chip.topologies)}" for name, chip in CHIPS.items()
    )
    return f"{slices}; cpu-N: N fake devices"


def topology(name: str) -> Topology:
    """Describe the slice `name`, such as `v5e:16x16` or `cpu-8`, without any TPU.

    Call it before any other code asks JAX for a device.

    Raises:
      UserError: the slice is unknown, or libtpu is missing.
    """
    if found := re.fullmatch(r"cpu-([1-9]\d*)", name):
        return Topology(name, CPU, _cpus(int(found[1])))
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].topologies:
        raise UserError(f"topology is {name!r}; expected one of {known()}")
    return Topology(name, CHIPS[kind], _tpus(name))


def larger(name: str) -> list[str]:
    """Return the slices with more chips of the same kind, the smallest first."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        return []
    shapes = CHIPS[kind].topologies
    return [f"{kind}:{s}" for s in shapes[shapes.index(shape) + 1 :]]


def _cpus(count: int) -> list:
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has its devices already; use some of them
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"topology is cpu-{count}, but this process has {len(devices)} devices "
            "already; expected at most that many"
        )
    return devices[:count]


def _tpus(name: str) -> list:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name} needs libtpu, which is not installed; run `pip install "
            "'hypelora_jax[plan]'` (in the repository: make plan)"
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update(
        "jax_platforms", "cpu"
    )  # so that a TPU of this machine is not used
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu does not document its error types
        raise UserError(
            f"libtpu cannot describe {name} ({error}); expected libtpu 0.0.52 or newer"
        ) from error
    return list(found.devices)
