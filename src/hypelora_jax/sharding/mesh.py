"""The device mesh and the placement of batches and state on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hypelora_jax.settings import MeshConfig
from hypelora_jax.types import Batch, UserError

AXES = ("data", "fsdp", "model")
BATCH = P(("data", "fsdp"))
BATCH_NAMES = ("ids", "mask", "types", "label", "weight")


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Mesh over all devices with axes data, fsdp, model; one size may be -1.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.model]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"config.mesh is {config.data} x {config.fsdp} x {config.model}; wanted "
            f"sizes whose product is the {len(devices)} devices (one may be -1)"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of a leaf that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_size_per_device(batch_size: int, mesh: Mesh) -> int:
    """Rows each device gets; a batch that does not divide is the user's mistake."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise UserError(
            f"config.optim.batch_size / accumulate is {batch_size}; wanted a multiple "
            f"of the {ways} devices along data and fsdp"
        )
    return batch_size // ways


def batch_shardings(mesh: Mesh, cond_rank: int = 0) -> dict[str, NamedSharding]:
    """Sharding of each entry of a batch.

    `cond_rank` is 0 for a batch without "cond", 2 for cond_SC (replicated), 3 for
    cond_BSC (split as the rows are).
    """
    out = {name: NamedSharding(mesh, BATCH) for name in BATCH_NAMES}
    if cond_rank:
        out["cond"] = NamedSharding(mesh, BATCH if cond_rank == 3 else P())
    return out


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """A host batch placed on the mesh; entries the step does not read are dropped."""
    cond = batch.get("cond")
    shardings = batch_shardings(mesh, 0 if cond is None else cond.ndim)
    return {n: jax.device_put(batch[n], s) for n, s in shardings.items()}
