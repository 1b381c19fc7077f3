"""A head with one last layer for each task of a set; the rest is shared."""

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.config.adapter_sections import HeadConfig
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks.dense import NORMAL
from hypelora_jax.families.family import Family
from hypelora_jax.families.sequence_head import first_states, pooled, pooled_init
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import named_key
from hypelora_jax.types import ABSENT, Batch, Head, Key, Params


def per_task_head(
    family: Family, sizes: EncoderConfig, task: Task, config: HeadConfig, dtype: str
) -> Head:
    """Head whose layer `out` has a kernel (D, Y) and a bias (Y,) for each of K tasks.

    `batch["task"]` has the index of each row's task. The logits of an index that is
    none of the K tasks are NaN. Those of classes that the row's task does not have are
    ABSENT. There is no single last layer, so `features` is None.

    Raises:
      UserError: the data are not a set of tasks.
    """
    del config
    if task.tasks < 1:
        raise UserError(
            "config.head.kind=per_task has a last layer for each task of a set, but "
            "the data are one task; expected data.source=tasks, or head.kind=auto"
        )
    layout, outputs = family.sequence, task.num_outputs

    def init(key: Key) -> Params:
        shape = (task.tasks, sizes.width, outputs)
        kernel_KDY = NORMAL(named_key(key, "out"), shape, jnp.float32)
        out = {"kernel": kernel_KDY, "bias": jnp.zeros((task.tasks, outputs))}
        return {**pooled_init(layout, sizes, named_key(key, "dense")), "out": out}

    def apply(
        params: Params, hidden_BTD: jax.Array, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        first = first_states(hidden_BTD, batch, dtype)
        x_BD = pooled(layout, sizes, params, first, key)
        own = {  # `take` gives NaN for an index that does not exist
            name: jnp.take(x.astype(x_BD.dtype), batch["task"], axis=0)
            for name, x in params["out"].items()
        }
        logits_BY = jnp.einsum("...d,...dy->...y", x_BD, own["kernel"]) + own["bias"]
        return of_own_classes(task, logits_BY, batch["task"])

    return Head(jax.jit(init), apply, None, reads=("task",))


def of_own_classes(task: Task, logits_BY: jax.Array, task_B: jax.Array) -> jax.Array:
    """Logits that are ABSENT for the classes that a row's task does not have."""
    if not task.classes:
        return logits_BY
    given_KY = np.arange(task.num_outputs)[None] < np.asarray(task.classes)[:, None]
    given_BY = jnp.take(given_KY, task_B, axis=0)  # True for no task
    return jnp.where(given_BY, logits_BY, ABSENT)
