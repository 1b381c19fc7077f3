"""Sharding rules: for each family a table from the path of a leaf to a PartitionSpec.

A rule must match a whole slash path, the first match wins, and every leaf must match a
rule. A spec names the *last* axes of a leaf: `P("fsdp", "model")` cuts a stacked kernel
(L, I, O) on I and O. Small leaves are not cut.

The kernel of a projection is cut on its input over one mesh axis and on its output over
the other, in alternation (Shoeybi et al. 2019, "Megatron-LM", section 3), so that
attention and feed-forward need one sum over `model` each. Factors are cut like the
kernel that they adapt.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hypelora_jax import trees
from hypelora_jax.errors import UserError
from hypelora_jax.types import Lora, Params

T = TypeVar("T")
Table = tuple[tuple[str, P], ...]
IN, OUT = "(q|k|v|up|gate)", "(o|down)"  # into heads or feed-forward, and back out

BATCH = P(("data", "fsdp"))  # of arrays whose first axis is rows
# Rules for all leaves but the backbone. These are small, so every device has them whole
# unless a rule cuts them.
ADAPTER: Table = (
    (f"lora/{IN}/a|hyper/((init|out)/)?a/{IN}", P("fsdp", None)),
    (f"lora/{IN}/b|hyper/(init|out)/b/{IN}", P(None, "model")),
    (f"lora/{OUT}/a|hyper/((init|out)/)?a/{OUT}", P("model", None)),
    (f"lora/{OUT}/b|hyper/(init|out)/b/{OUT}", P(None, "fsdp")),
    # at paper size the output heads are larger than the adapter they write
    ("hyper/out/[^/]+/(a|b|ab)/(kernel|bias)", P("model")),
    ("(hyper/trunk|hyper/out/z|cond|head|loss|lora/sign)/.+", P()),
)


def hits(pattern: str, path: str) -> bool:
    """Whether the pattern of a rule matches the whole path of a leaf."""
    return re.fullmatch(pattern, path) is not None


def spec(path: str, ndim: int, table: Table) -> P:
    """Return the spec of all axes of a leaf; `table` has the backbone's rules.

    Raises:
      ValueError: no rule matches the leaf, or its rule has more axes than the leaf.
    """
    for pattern, last in table + ADAPTER:
        if hits(pattern, path):
            if len(last) > ndim:
                raise ValueError(
                    f"the sharding rule {pattern!r} cuts {len(last)} axes, but {path} "
                    f"has {ndim}"
                )
            return P(*(None,) * (ndim - len(last)), *last) if len(last) else P()
    raise ValueError(
        f"no sharding rule matches {path}; add one to `shardings` of the model's "
        "family, in families/"
    )


def shardings(params: Params, mesh: Mesh | AbstractMesh, table: Table) -> Params:
    """Return the sharding of each leaf of a parameter tree (arrays or shape structs).

    Raises:
      UserError: a mesh axis does not divide the axis of a leaf that it cuts.
      ValueError: a leaf has no rule.
    """

    def one(path: str, leaf: Any) -> NamedSharding:
        wanted = spec(path, len(leaf.shape), table)
        _check(path, leaf.shape, wanted, mesh)
        return NamedSharding(mesh, wanted)

    return trees.map_with_path(one, params)


def _check(path: str, shape: tuple, wanted: P, mesh: Any) -> None:
    for size, names in zip(shape, wanted, strict=False):
        names = (names,) if isinstance(names, str) else names or ()
        ways = 1
        for name in names:
            ways *= mesh.shape[name]
        if size % ways:
            raise UserError(
                f"config.mesh has {' x '.join(names)} = {ways}, which does not divide "
                f"{size} of {path} {tuple(shape)}; expected sizes of fsdp and model "
                "that divide the model's widths"
            )


def pin_factors(lora: Lora, row_B: jax.Array | None, mesh: Mesh) -> Lora:
    """Pin a placed adapter and its gradient, inside jit, to its kernels' devices.

    Devices then sum the gradient of the factors before it is pulled back through the
    network that made them. If `row_B` is None, conditions are groups of rows; their
    factors are cut like the rows if the devices divide them.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def pin(path: str, x: jax.Array) -> jax.Array:
        last = next(last for rule, last in ADAPTER if hits(rule, path))
        wanted = P(*(None,) * (x.ndim - len(last)), *last)
        if x.ndim == 4 and row_B is None and x.shape[1] % ways == 0:
            rest = (None if axis == "fsdp" else axis for axis in last)
            wanted = P(None, *BATCH, *rest)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, wanted))

    return trees.map_with_path(pin, {"lora": lora})["lora"]


def over(mesh: Mesh | None, compute: Callable[..., T]) -> Callable[..., T]:
    """Wrap `compute` to trace it on a mesh, so that `pin_rows` in it knows the mesh."""
    if mesh is None:
        return compute
    abstract = mesh.abstract_mesh

    @functools.wraps(compute)  # programs are named after the function
    def on_mesh(*args: Any) -> T:
        with jax.sharding.use_abstract_mesh(abstract):
            return compute(*args)

    return on_mesh


def pin_rows(x_BTD: jax.Array) -> jax.Array:
    """Pin hidden states so that each row is whole on its devices; no-op without a mesh.

    A kernel may be cut over `fsdp` on the axis that its product sums over. Without the
    pin, the compiler may then sum the hidden states of all rows over `fsdp` instead of
    gathering that one kernel. A single row has no axis to cut.
    """
    if x_BTD.ndim != 3 or "fsdp" not in jax.sharding.get_abstract_mesh().axis_names:
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, BATCH)


class Place(NamedTuple):
    """The devices that a program is traced for."""

    platform: str  # cpu | gpu | tpu
    capability: float = 0.0  # compute capability of an NVIDIA GPU; 0 for others
    rows: int = 1  # parts that the mesh cuts a batch into
    heads: int = 1  # parts that it cuts the heads of attention into
    known: bool = True  # False: several devices, and no mesh that says which


def place_of_trace() -> Place:
    """Return the devices of the current mesh, or else JAX's default device."""
    mesh = jax.sharding.get_abstract_mesh()
    at = _platform()
    capability = _capability() if at == "gpu" else 0.0
    if mesh.empty:
        return Place(at, capability, known=jax.device_count() == 1)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    return Place(at, capability, rows, mesh.shape["model"])


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def _capability() -> float:
    """Return the compute capability of the GPUs here; 0.0 if they are not NVIDIA's."""
    found = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(found) if re.fullmatch(r"\d+\.\d+", found) else 0.0


def by_rows_and_heads(compute: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Wrap `compute` so that each device runs it on its own rows and heads.

    The compiler cannot cut a kernel by itself. All arguments but the last are
    (B, T, H, K), the last is (B, T), and the result is (B, T, H, K).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return compute
    wide = P(*BATCH, None, "model")

    def mapped(*args: jax.Array) -> jax.Array:
        specs = (*(wide,) * (len(args) - 1), BATCH)
        # what a kernel returns says nothing of the axes that it varies over
        each = jax.shard_map(compute, in_specs=specs, out_specs=wide, check_vma=False)
        return each(*args)

    return mapped


def on_cpu() -> bool:
    """Whether the devices of the current mesh, or else JAX's default, are CPUs."""
    return _platform() == "cpu"


def on_one_accelerator() -> bool:
    """Whether the current mesh has one device, and this device is not a CPU."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size == 1 and not mesh.empty and not on_cpu()


def placed(shapes: Any, where: Any) -> Any:
    """Add shardings to shapes; both trees have the same structure."""
    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, where
    )


def place(params: Params, where: Params) -> Params:
    """Place host arrays, which every process has whole, by the shardings in `where`."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(put, params, where)
