"""Reads the adapters that a run learns to write, and their heads, and checks both."""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hypelora_jax import families, files, trees
from hypelora_jax.adapters import gram, patterns
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.interop import adapter as adapters
from hypelora_jax.interop import base as bases
from hypelora_jax.interop import peft
from hypelora_jax.model import Model
from hypelora_jax.types import Lora, Params


class Given(NamedTuple):
    """A given adapter: its factors on all layers, scale folded in, and its head."""

    factors: Lora
    head: Params


def given(
    name: str, folder: str, labels: Sequence[str], model: Model, base: bases.Base
) -> Given:
    """Read an adapter, all of whose tensors are used.

    Raises:
      UserError: the folder has no adapter of these labels, sites and base model.
    """
    try:
        return _read(epath.Path(folder), labels, model, base)
    except UserError as e:
        raise UserError(f"task {name}, adapter {folder}: {e}") from e


def _read(
    path: epath.Path, labels: Sequence[str], model: Model, base: bases.Base
) -> Given:
    fields, tensors = peft.read(path)
    _check_base(fields.base, base)
    got = adapters.from_peft(base.config, fields, tensors)
    _check_sites(got, model)
    names, layers = families.of(base.config).names, base.config.layers
    scale = patterns.scaling(got.lora, got.sites, layers, names.full).scale
    arrays: Lora = jax.tree.map(jnp.asarray, got.factors)
    factors = lora_lib.fold(lora_lib.place([(got.sites, arrays)], layers), scale)
    if not any(np.any(gram.squared_norm(f)) for f in factors.values()):
        raise UserError("its deltas are all zero; expected a trained adapter")
    head = {part: dict(leaves) for part, leaves in got.head.items()}
    for part, delta in got.head_deltas.items():
        if part in head:
            head[part]["kernel"] = head[part]["kernel"] + delta.astype(np.float32)
    order = _order(path, labels)
    if "out" in head and order is not None:
        head["out"] = {n: x[..., order] for n, x in head["out"].items()}
    return Given(factors, head)


def _check_base(name: str, base: bases.Base) -> None:
    """Refuse an adapter of another base model; random weights have no name to compare.

    Folders are the same base model if their weights are the same.
    """
    known = (base.name, "minilm" if base.name == bases.MINILM else base.name)
    if not name or name in known or base.folder is None:
        return
    if epath.Path(name).is_dir():
        other = bases.weights_sha256(bases.resolve(name))
        if other == bases.weights_sha256(base):
            return
    raise UserError(
        f"its base model is {name}, and that of this run {base.name}; expected "
        "adapters of the run's base model"
    )


def _check_sites(got: adapters.Adapter, model: Model) -> None:
    parts = model.parts
    own = [*parts.hyper_sites.items(), *parts.lora_sites.items()]
    wanted = {(m, i) for m, site in own for i in site.layers}
    found = {(m, i) for m, site in got.sites.items() for i in site.layers}
    if found != wanted:
        raise UserError(
            f"it adapts {_said(found)}, and this run {_said(wanted)}; expected the "
            "same sites (config.lora.targets and lora.layers)"
        )


def _said(sites: set[tuple[str, int]]) -> str:
    modules = sorted({m for m, _ in sites})
    each = [f"{m} in {sorted(i for n, i in sites if n == m)}" for m in modules]
    return ", ".join(each)


def _order(path: epath.Path, labels: Sequence[str]) -> list[int] | None:
    """Return the outputs of an adapter in the order of the task's labels.

    None keeps their order: they have other names, or nothing records their names.
    """
    if not (path / peft.RECORD).exists():
        return None
    task = files.read_json(path / peft.RECORD).get("task", {})
    own = task.get("labels") if isinstance(task, dict) else None
    if not isinstance(own, list) or not all(isinstance(one, str) for one in own):
        return None
    if sorted(own) != sorted(labels):
        return None
    return [own.index(label) for label in labels]


def head(like: Params, found: Sequence[Given | None], tasks: TaskSet) -> Params:
    """Return the head of the run: one for all tasks, or one for each.

    Raises:
      UserError: an adapter has no head of these shapes, or the heads differ and the
        run has one for all.
    """
    flat = {k: trees.flatten(g.head) for k, g in enumerate(found) if g is not None}
    out = {}
    for path, x in trees.flatten(like).items():
        for k, own in flat.items():
            if path not in own:
                wanted = "the whole head, as hypelora export writes it"
                _refuse(tasks, k, f"it does not have {path} of the head", wanted)
        rows = {k: own[path] for k, own in flat.items()}
        several = {own.shape for own in rows.values()} == {x.shape[1:]}
        wanted = x.shape[1:] if several else x.shape
        for k, own in rows.items():
            if own.shape != wanted:
                what = f"{path} of its head is {own.shape}"
                _refuse(tasks, k, what, f"{wanted}, as in this run")
        one = _row_of_each if several else _shared
        out[path] = one(path, rows, tasks).astype(x.dtype)
    return trees.unflatten(out)


def _row_of_each(path: str, rows: dict[int, np.ndarray], tasks: TaskSet) -> np.ndarray:
    for k in range(len(tasks.names)):
        if k not in rows:
            what = f"it has no adapter, and this run a head ({path}) for each task"
            _refuse(tasks, k, what, "an adapter in each task")
    return np.stack([rows[k] for k in range(len(tasks.names))])


def _shared(path: str, rows: dict[int, np.ndarray], tasks: TaskSet) -> np.ndarray:
    first = next(iter(rows))
    for k, own in rows.items():
        if not np.allclose(own, rows[first], atol=1e-6):
            what = f"its head differs from that of task {tasks.names[first]} ({path})"
            _refuse(tasks, k, what, "one head, or config.head.kind=separate")
    return rows[first]


def _refuse(tasks: TaskSet, k: int, what: str, expected: str) -> NoReturn:
    """Raise a UserError that names a task and its adapter."""
    where = f"task {tasks.names[k]}, adapter {tasks.adapters[k] or 'none'}"
    raise UserError(f"{where}: {what}; expected {expected}")
