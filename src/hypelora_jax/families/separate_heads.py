"""A whole head for each task of a set; nothing of it is shared."""

import jax
import jax.numpy as jnp

from hypelora_jax.config.adapter_sections import HeadConfig
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.families.per_task_head import of_own_classes
from hypelora_jax.families.sequence_head import first_states, sequence_head
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.types import Batch, Head, Key, Params


def separate_heads(
    family: Family, sizes: EncoderConfig, task: Task, config: HeadConfig, dtype: str
) -> Head:
    """Head whose leaves have a first axis of K tasks, for adapters with their heads.

    `batch["task"]` has the index of each row's task. The logits of an index that is
    none of the K tasks are NaN, and those of classes that the task lacks ABSENT. There
    is no single last layer, so `features` is None.

    Raises:
      UserError: the data are not a set of tasks.
    """
    if task.tasks < 1:
        raise UserError(
            f"config.head.kind={config.kind} has a head for each task of a set, but "
            "the data are one task; expected data.source=tasks, or head.kind=auto"
        )
    one = sequence_head(family.sequence, sizes, task.num_outputs, dtype=dtype)

    def init(key: Key) -> Params:
        return jax.vmap(one.init)(jax.random.split(key, task.tasks))

    def apply(
        params: Params, hidden_BTD: jax.Array, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        first = first_states(hidden_BTD, batch, dtype)  # (B, D), packed (B P, D)
        rows = batch["task"].reshape(-1)
        own = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), params)
        keys = None if key is None else jax.random.split(key, len(rows))
        axes = (0, 0, None, None if key is None else 0)
        # one row of one token, as a text whose first state the head reads
        logits_BY = jax.vmap(one.apply, axes)(own, first[:, None], {}, keys)
        return of_own_classes(task, logits_BY, rows)

    return Head(jax.jit(init), apply, None, reads=("task",))
