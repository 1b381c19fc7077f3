"""The initial parameters of a run, each leaf placed by its sharding rule.

Build order: shapes, then shardings, then values. Tensors from files are placed, and
random values are drawn, directly where their rule says, so that nothing has to move.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from hypelora_jax import families, trees
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task
from hypelora_jax.interop import base as bases
from hypelora_jax.keys import named_key
from hypelora_jax.model import Model
from hypelora_jax.sharding import rules
from hypelora_jax.train import ensembles
from hypelora_jax.types import Key, Params


def parameters(
    settings: Settings,
    model: Model,
    base: bases.Base,
    task: Task,
    mesh: Mesh,
    inits: Sequence[Key],
) -> tuple[Params, Params]:
    """Make (trainable, frozen) of all seeds, each leaf placed where its rule says.

    Args:
      settings: settings of the run.
      model: the model's functions.
      base: the base model, which the weights come from.
      task: the task of the head.
      mesh: the device mesh.
      inits: for each seed the key that its parameters are drawn from.
    """
    family = families.of(base.config)
    table, kind = family.shardings, families.head_kind(settings.head.kind, task)
    outputs = task.num_outputs if kind in family.heads else None
    load = partial(bases.load_heads, base, model.parts.head, outputs)
    backbone, heads = None, None
    if base.folder is not None:
        backbone, heads = load([named_key(key, "base") for key in inits])
        own = {"backbone": backbone}
        backbone = rules.place(own, rules.shardings(own, mesh, table))["backbone"]
        heads = jax.tree.map(np.asarray, heads)

    def draw(data: np.ndarray, backbone: Params | None, heads: list | None) -> tuple:
        inits = [jax.random.wrap_key_data(one) for one in data]
        if heads is None:
            backbone, heads = load([named_key(key, "base") for key in inits])
        start = {} if backbone is None else {"backbone": backbone}
        parts = [
            model.split(model.init(k, {**start, "head": h}))
            for k, h in zip(inits, heads, strict=True)
        ]
        return parts[0] if len(parts) == 1 else ensembles.stack(parts)

    data = np.stack([np.asarray(jax.random.key_data(key)) for key in inits])
    # Only a backbone that trains is an argument of the program; a frozen one is used
    # where it is, so that it is not copied.
    trains = trees.matcher(model.parts.trains)
    paths = trees.flatten({"backbone": backbone or {}})
    inside = backbone if any(map(trains, paths)) else None
    shapes = jax.eval_shape(draw, data, inside, heads)
    where = tuple(rules.shardings(tree, mesh, table) for tree in shapes)
    trainable, frozen = jax.jit(draw, out_shardings=where)(data, inside, heads)
    if backbone is not None and inside is None:
        frozen = {**frozen, "backbone": backbone}
    return trainable, frozen
