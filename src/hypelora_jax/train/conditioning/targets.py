"""The given adapters that a run learns to write: read, checked, made its targets.

They are frozen leaves of the run, `targets/factors` and `targets/deviation`; see
`objectives.reconstruction`. Their heads become the head of the run.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from hypelora_jax import trees
from hypelora_jax.adapters import canonical, gram
from hypelora_jax.config.settings import Settings
from hypelora_jax.data import npz
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.interop import peft
from hypelora_jax.interop.peft_config import CONFIG
from hypelora_jax.model import Model
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.train import ensembles
from hypelora_jax.train.conditioning import given_adapters
from hypelora_jax.train.conditioning.given_adapters import Given
from hypelora_jax.types import Lora, Params

LEAF = "targets"


def with_targets(
    frozen: Params,
    settings: Settings,
    model: Model,
    base: bases.Base,
    tasks: TaskSet | None,
    mesh: Mesh,
) -> Params:
    """Return the frozen tree of a run that learns adapters, with them and their heads.

    Raises:
      UserError: the run cannot learn adapters, a training task has none, or an adapter
        does not fit the run; the message names task and folder.
    """
    tasks = check(settings, model, tasks)
    found = [
        given_adapters.given(name, folder, labels, model, base) if folder else None
        for name, folder, labels in zip(
            tasks.names, tasks.adapters, tasks.labels, strict=True
        )
    ]
    logging.info("learning %d adapters", sum(one is not None for one in found))
    head = given_adapters.head(frozen["head"], found, tasks)
    where = {path: x.sharding for path, x in trees.flatten(frozen["head"]).items()}
    placed = trees.unflatten(rules.place(trees.flatten(head), where))
    made = _placed(_targets(found, tasks, model), mesh)
    return {**frozen, "head": placed, LEAF: made}


def check(settings: Settings, model: Model, tasks: TaskSet | None) -> TaskSet:
    """Return the set of tasks of a run that learns adapters.

    Raises:
      UserError: the run cannot learn adapters, or a training task has none.
    """
    objective = f"config.loss.objective={settings.loss.objective}"
    if tasks is None:
        raise UserError(
            f"{objective} learns the adapters of a set of tasks, but the data are one "
            "task; expected data.source=tasks"
        )
    cond = model.parts.cond
    if cond is None or not cond.reads or "pooled" in cond.reads:
        raise UserError(
            f"{objective} makes one adapter for each task, but method="
            f"{settings.method} with condition.source={settings.condition.source} does "
            "not; expected a hyper-network with condition.source=text, set or task"
        )
    if ensembles.count(settings) > 1:
        raise UserError(
            f"{objective} trains one network, but uncertainty.kind="
            f"{settings.uncertainty.kind} trains {ensembles.count(settings)}; expected "
            "uncertainty.kind=none"
        )
    folders = tasks.adapters or ("",) * len(tasks.names)
    for name, folder, held_out in zip(
        tasks.names, folders, tasks.held_out, strict=True
    ):
        if not folder and not held_out:
            raise UserError(
                f"task {name} has no adapter, but {objective} learns that of each "
                "training task; expected the folder of one in its field adapter"
            )
    return tasks


def _targets(found: Sequence[Given | None], tasks: TaskSet, model: Model) -> Params:
    """Return canonical factors (L, K, ...) of at least the run's rank, and deviations.

    A task without an adapter has zeros.
    """
    least = model.parts.rank
    like = next(one.factors for one in found if one is not None)
    none = jax.tree.map(jnp.zeros_like, like)
    every = [none if one is None else one.factors for one in found]
    stacked = gram.stacked([_of_rank(one, least) for one in every])
    factors = jax.jit(canonical.canonical)(stacked)
    trained = np.flatnonzero(~np.asarray(tasks.held_out))
    of_trained = jax.tree.map(lambda x: x[:, trained], factors)
    return {
        "factors": factors,
        "deviation": canonical.standard(of_trained).deviation,
    }


def _of_rank(lora: Lora, least: int) -> Lora:
    """Pad factors with zeros to a rank, unless theirs is higher."""
    out: Lora = {}
    for m, f in lora.items():
        more = max(0, least - f["a"].shape[-1])
        a = jnp.pad(f["a"], ((0, 0), (0, 0), (0, more)))
        b = jnp.pad(f["b"], ((0, 0), (0, more), (0, 0)))
        out[m] = {"a": a, "b": b}
    return out


def _placed(tree: Params, mesh: Mesh) -> Params:
    host = jax.tree.map(np.asarray, tree)
    return rules.place(host, jax.tree.map(lambda x: replicated(mesh), host))


def sha256(tasks: TaskSet) -> str:
    """Return the SHA-256 of the files of all adapters of a set, in hex."""
    digest = hashlib.sha256()
    for folder in filter(None, tasks.adapters):
        for name in (CONFIG, peft.TENSORS):
            digest.update((epath.Path(folder) / name).read_bytes())
    return digest.hexdigest()


def write(run: Run, frozen: Params) -> None:
    """Write targets.npz, if the run learns adapters."""
    if LEAF in frozen:
        arrays = trees.flatten(frozen[LEAF])
        npz.write(run.targets_file, {n: np.asarray(x) for n, x in arrays.items()})


def read(run: Run, frozen: Params, mesh: Mesh) -> Params:
    """Add what `write` wrote to the frozen tree of a run.

    Raises:
      UserError: the file is damaged.
    """
    if not run.targets_file.exists():
        return frozen
    arrays: dict[str, Any] = npz.read(run.targets_file)
    return {**frozen, LEAF: _placed(trees.unflatten(arrays), mesh)}
