"""The loss of a micro-batch of labelled rows, as sums that can be added."""

from typing import Any

import jax
import jax.numpy as jnp

from hypelora_jax.calibration.arrays import total
from hypelora_jax.types import Batch, Key, Lora, Loss, Params, Sums

READS = ("label", "weight")


def row_sums(loss: Loss) -> Sums:
    """`sums` of an objective whose loss compares each row's logits with its label."""

    def sums(
        model: Any, params: Params, factors: Lora, batch: Batch, key: Key | None
    ) -> tuple[jax.Array, jax.Array]:
        logits_BY = model.classify(params, factors, batch, key)
        loss_B = loss.apply(
            params.get("loss", {}), logits_BY, batch["label"], batch["weight"]
        )
        weight_B = batch["weight"].astype(loss_B.dtype)
        return total(loss_B, weight_B), jnp.sum(weight_B)

    return sums
