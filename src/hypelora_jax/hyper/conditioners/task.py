"""A learned vector for each task of a set."""

import jax
import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.hyper.conditioners.vectors import DEFAULT_WIDTH, entry
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def task(settings: Settings, sizes: Sizes) -> Conditioner:
    """The learned rows `task/rows` (K, C) that `batch["which"]`, int32 (U,), names.

    They start from N(0, 1), like the embeddings of sites; Mahabadi et al. (2021),
    "HyperFormer". A number that is no task's gives NaN.
    """
    if not sizes.tasks:
        raise UserError(
            "config.condition.source=task needs a set of tasks, but the data have "
            "one task; expected data.source=tasks, or another condition.source"
        )
    shape = (sizes.tasks, settings.condition.width or DEFAULT_WIDTH)

    def init(key: Key) -> Params:
        return {"task": {"rows": jax.random.normal(key, shape)}}

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del key
        which_U = entry(batch, "which", "task", [()])
        rows_KC = params["task"]["rows"]
        vectors_UC = jnp.take(rows_KC, which_U, axis=0, mode="fill")
        return Conditions(vectors_UC[:, None], batch.get("row"))

    return Conditioner(init, apply, {"which": ()}, shape[1])
