"""The device mesh and the placement of batches on it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.errors import UserError
from hypelora_jax.sharding.rules import BATCH
from hypelora_jax.types import Batch

AXES = ("data", "fsdp", "model")
CONDITION_NAMES = ("condition", "which", "sentences")  # one entry a condition
ROW_NAMES = ("ids", "mask", "types")  # what the backbone reads
PACKED_NAMES = ("segment", "first")  # what it reads of a packed batch besides
HEAD_NAMES = ("task", "labels")  # what heads read of a batch with several tasks
BATCH_NAMES = (
    *ROW_NAMES,
    *PACKED_NAMES,
    "label",
    "weight",
    *CONDITION_NAMES,
    "row",
    *HEAD_NAMES,
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh over all devices, axes data, fsdp and model; one size may be -1.

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
            f"config.mesh is {config.data} x {config.fsdp} x {config.model}; expected "
            f"sizes whose product is the {len(devices)} devices (one may be -1)"
        )
    return _mesh(sizes, devices)


def fitting_mesh(
    config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Make the mesh of a trained run on the devices that are available.

    It is the same as `make_mesh` if the sizes fit. Otherwise `model` and `fsdp` get
    their largest divisors that also divide the devices, and `data` gets the rest.
    """
    devices = jax.devices() if devices is None else devices
    try:
        return make_mesh(config, devices)
    except UserError:
        left = len(devices)
        model = math.gcd(max(config.model, 1), left)
        fsdp = math.gcd(max(config.fsdp, 1), left // model)
        return _mesh([left // model // fsdp, fsdp, model], devices)


def _mesh(sizes: Sequence[int], devices: Sequence[jax.Device]) -> Mesh:
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a leaf that every device has in full."""
    return NamedSharding(mesh, P())


def row_ways(mesh: Mesh) -> int:
    """Return the number of parts that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_size_per_device(batch_size: int, mesh: Mesh) -> int:
    """Return the number of rows that each device gets.

    Raises:
      UserError: the batch cannot be divided evenly among the devices.
    """
    ways = row_ways(mesh)
    if batch_size % ways:
        raise UserError(
            f"config.optim.batch_size / accumulate is {batch_size}; expected a "
            f"multiple of the {ways} devices along data and fsdp"
        )
    return batch_size // ways


def fitting_batch_size(batch_size: int, mesh: Mesh) -> int:
    """Return the smallest size of at least `batch_size` that the mesh can split.

    It is for evaluation, where additional rows are padding and are dropped.
    """
    ways = row_ways(mesh)
    return -(-batch_size // ways) * ways


def own_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return the positions of this process's rows in a batch, ascending."""
    cut = NamedSharding(mesh, BATCH)
    parts = cut.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[at] for at in parts]))


def batch_shardings(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Return the sharding of each entry of a batch (arrays or shape structs).

    Rows are cut over data and fsdp. So are conditions if each row has its own;
    conditions that rows share are whole on every device.
    """
    out = {name: NamedSharding(mesh, BATCH) for name in batch}
    for name in CONDITION_NAMES:
        shared = name in batch and len(batch[name]) != len(batch["ids"])
        if shared or (name in batch and "row" in batch):
            out[name] = replicated(mesh)
    return out


def pin_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Pin a batch, inside jit, to the shardings of `batch_shardings`.

    They depend on the batch (conditions of single rows are cut, shared ones are not),
    so the `in_shardings` of a jitted function cannot name them in advance.
    """
    where = batch_shardings(mesh, batch)
    return jax.lax.with_sharding_constraint(dict(batch), where)


def put_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, names: Sequence[str] = BATCH_NAMES
) -> Batch:
    """Place a host batch on the mesh; entries not in `names` are dropped.

    With several processes, each passes its own rows, and the length of "index" is the
    number of rows in the whole batch. One process passes all rows and needs no "index".
    """
    named = {name: batch[name] for name in names if name in batch}
    cut = batch_shardings(mesh, named)
    if replicated(mesh).is_fully_addressable:
        return {name: jax.device_put(x, cut[name]) for name, x in named.items()}
    size = len(batch["index"])
    rows = own_rows(size, mesh)

    def put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
        if sharding.spec != BATCH:
            return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

        def part(at: tuple[slice, ...] | None) -> np.ndarray:
            assert at is not None  # JAX passes a slice for each axis
            first, last = np.arange(size)[at[0]][[0, -1]]
            return x[np.searchsorted(rows, first) : np.searchsorted(rows, last) + 1]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

    return {name: put(x, cut[name]) for name, x in named.items()}
