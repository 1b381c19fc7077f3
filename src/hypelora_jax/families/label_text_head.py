"""A head that compares a text with the names of its task's classes."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from hypelora_jax.config.adapter_sections import HeadConfig
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.families.sequence_head import first_states, pooled, pooled_init
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.keys import named_key
from hypelora_jax.types import ABSENT, Batch, Head, Key, Params

KERNEL = nn.initializers.lecun_normal()  # keeps the mean square of what it projects


def label_text_head(
    family: Family, sizes: EncoderConfig, task: Task, config: HeadConfig, dtype: str
) -> Head:
    """Head whose logits are scaled products of a text's state with embedded labels.

    logit_y = s <P h, Q e_y> / sqrt(W), with h the input of the last layer of a sequence
    head, e_y the embedding of the name of class y, of width E and mean square 1, and P
    and Q projections to `config.width` W without bias. The scale s starts at 1, where
    the logits have about the size of h. There is nothing of a single class in it, so
    classes that it has not seen need only names.

    `batch["labels"]` has the embeddings (B, Y, E) of the classes of each row's task. An
    embedding of zeros is no class: its logit is ABSENT, its probability exactly 0. It
    is finite, so that 0 times its log-probability is 0. There is no last layer `out`,
    so `features` is None.

    Raises:
      UserError: the data have no classes, or no embeddings of their names.
    """
    if not task.labels or task.label_width < 1:
        what = "are not a set of tasks" if task.labels else "have no classes"
        raise UserError(
            "config.head.kind=label_text compares a text with the names of the classes "
            f"of its task, but the data {what}; expected data.source=tasks with "
            "classes, or head.kind=auto"
        )
    layout = family.sequence

    def init(key: Key) -> Params:
        state, label = (sizes.width, config.width), (task.label_width, config.width)
        return {
            **pooled_init(layout, sizes, named_key(key, "dense")),
            "state": {"kernel": KERNEL(named_key(key, "state"), state, jnp.float32)},
            "label": {"kernel": KERNEL(named_key(key, "label"), label, jnp.float32)},
            "log_scale": jnp.zeros(()),
        }

    def apply(
        params: Params, hidden_BTD: jax.Array, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        first = first_states(hidden_BTD, batch, dtype)
        x_BD = pooled(layout, sizes, params, first, key)
        state, label = (
            params[n]["kernel"].astype(x_BD.dtype) for n in ("state", "label")
        )
        e_BYE = batch["labels"].astype(x_BD.dtype)
        p_BW = jnp.einsum("...d,dw->...w", x_BD, state)
        q_BYW = jnp.einsum("...ye,ew->...yw", e_BYE, label)
        scale = jnp.exp(params["log_scale"].astype(x_BD.dtype))
        products_BY = jnp.einsum("...w,...yw->...y", p_BW, q_BYW)
        logits_BY = products_BY * (scale / math.sqrt(config.width))
        return jnp.where(jnp.any(e_BYE != 0, axis=-1), logits_BY, ABSENT)

    return Head(jax.jit(init), apply, None, reads=("labels",))


def with_labels(params: Params, label_YE: jax.Array, width: int) -> Params:
    """Return a head of kind `classes` that answers as this one does for these labels.

    The logits are linear in the input of the last layer once the labels are known.

    Args:
      params: parameters of a `label_text` head.
      label_YE: embeddings of the names of the classes; zeros are no class here, too.
      width: W of the head, `config.width`.
    """
    scale = jnp.exp(params["log_scale"]) / math.sqrt(width)
    q_YW = label_YE @ params["label"]["kernel"]
    kernel_DY = params["state"]["kernel"] @ q_YW.T * scale
    rest = {n: params[n] for n in params if n not in ("state", "label", "log_scale")}
    bias_Y = jnp.where(jnp.any(label_YE != 0, axis=-1), 0.0, ABSENT)
    return {**rest, "out": {"kernel": kernel_DY, "bias": bias_Y}}
