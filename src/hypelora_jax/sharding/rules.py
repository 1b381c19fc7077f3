"""Where each leaf of a model lives: one table a family, from path to PartitionSpec.

Rules are matched whole against slash paths, the first match wins, and every leaf must
match one. A spec names the *last* axes of a leaf: `P("fsdp", "model")` cuts a stacked
kernel (L, I, O) on I and O. Whole leaves are those that are small.

A projection's kernel is cut on its input over one axis and on its output over the
other, in turns (Shoeybi et al. 2019, "Megatron-LM", section 3), so that attention and
feed-forward need one sum over `model` each. The factors follow the kernel they adapt.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hypelora_jax import trees
from hypelora_jax.errors import UserError
from hypelora_jax.types import Lora, Params

T = TypeVar("T")
Table = tuple[tuple[str, P], ...]
IN, OUT = "(q|k|v|up|gate)", "(o|down)"  # into heads or feed-forward, and back out

BATCH = P(("data", "fsdp"))  # rows, the first axis of whatever has rows
# All but the backbone: what trains, and what belongs to it, is small and whole on every
# device unless a rule says otherwise.
ADAPTER: Table = (
    (f"lora/{IN}/a|hyper/(init/)?a/{IN}", P("fsdp", None)),
    (f"lora/{IN}/b|hyper/init/b/{IN}", P(None, "model")),
    (f"lora/{OUT}/a|hyper/(init/)?a/{OUT}", P("model", None)),
    (f"lora/{OUT}/b|hyper/init/b/{OUT}", P(None, "fsdp")),
    # at paper size the output heads are larger than the adapter they write
    ("hyper/out/[^/]+/(a|b|ab)/(kernel|bias)", P("model")),
    ("(hyper/trunk|cond|head|loss)/.+", P()),
)


def hits(pattern: str, path: str) -> bool:
    """Whether a rule is for a leaf: the whole path, not a part of it."""
    return re.fullmatch(pattern, path) is not None


def spec(path: str, ndim: int, table: Table) -> P:
    """Spec of a leaf with all its axes; `table` is that of the family's backbone.

    Raises:
      ValueError: no rule for the leaf, or a rule with more axes than it has.
    """
    for pattern, last in table + ADAPTER:
        if hits(pattern, path):
            if len(last) > ndim:
                raise ValueError(
                    f"the sharding rule {pattern!r} cuts {len(last)} axes; {path} has "
                    f"{ndim}"
                )
            return P(*(None,) * (ndim - len(last)), *last) if len(last) else P()
    raise ValueError(
        f"no sharding rule matches {path}; add one to `shardings` of the model's "
        "family, in families/"
    )


def shardings(params: Params, mesh: Mesh | AbstractMesh, table: Table) -> Params:
    """Sharding of each leaf of a parameter tree (arrays or shape structs).

    Raises:
      UserError: a mesh axis that does not divide the axis of a leaf it cuts.
      ValueError: a leaf without a rule.
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
                f"{size} of {path} {tuple(shape)}; wanted "
                "sizes of fsdp and model that divide the model's widths"
            )


def pin_factors(lora: Lora, row_B: jax.Array | None, mesh: Mesh) -> Lora:
    """A placed adapter, inside jit, where its kernels are; its gradient too.

    So what is summed over devices is the gradient of the factors: only after that sum
    is it pulled back through the network that made them. Conditions that are groups of
    rows, `row_B` None, are cut as the rows are where the devices divide them.
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
    """`compute`, traced on a mesh, so that `pin_rows` in it knows where rows are."""
    if mesh is None:
        return compute
    abstract = mesh.abstract_mesh

    def on_mesh(*args: Any) -> T:
        with jax.sharding.use_abstract_mesh(abstract):
            return compute(*args)

    return on_mesh


def pin_rows(x_BTD: jax.Array) -> jax.Array:
    """Hidden states, each row whole on its devices; outside a mesh as they are.

    Else the compiler may sum the hidden states of all rows over `fsdp`, where a kernel
    is cut on the axis that it sums over, in place of gathering that one kernel. A row
    alone has no axis to cut.
    """
    if x_BTD.ndim != 3 or "fsdp" not in jax.sharding.get_abstract_mesh().axis_names:
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, BATCH)


def placed(shapes: Any, where: Any) -> Any:
    """Shapes with their shardings; both trees have the same structure."""
    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, where
    )


def place(params: Params, where: Params) -> Params:
    """Host arrays, which every process has whole, on the devices `where` says."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(put, params, where)
