"""Reconstruction: the adapter of each task is compared with one that is given.

`params["targets"]` has the `factors` of K given adapters, a_LKIR and b_LKRO with their
scale folded in, and the `deviation` of each entry over those that train, a_LIR and
b_LRO. Text-to-lora calls it so (Charakorn et al. 2025, section 3). The logits and the
labels are not in the loss: they only judge what the adapters do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hypelora_jax.adapters import gram, sign
from hypelora_jax.calibration.arrays import total
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.errors import UserError, choose
from hypelora_jax.objectives.classification import classification
from hypelora_jax.objectives.losses import widen
from hypelora_jax.types import Adapter, Batch, Key, Lora, Objective, Params, Sums

# (made, targets, deviation) -> the loss of each site, (L, U) by module
SiteLoss = Callable[[Lora, Lora, Lora], dict[str, jax.Array]]


def delta(made: Lora, targets: Lora, deviation: Lora) -> dict[str, jax.Array]:
    """Relative squared error |D - D'|^2 / |D'|^2 of each site's delta, (L, U)."""
    del deviation
    return gram.relative_losses(made, targets)


def factors(made: Lora, targets: Lora, deviation: Lora) -> dict[str, jax.Array]:
    """Mean squared difference of the z-scores of a site's canonical factors, (L, U).

    The means of the z-scores cancel, so only the deviation is needed. The targets are
    canonical (`adapters.canonical`); they have the rank of the factors that are made.

    Raises:
      UserError: they have another rank.
    """
    out = {}
    for m, own in made.items():
        rank, wanted = own["a"].shape[-1], targets[m]["a"].shape[-1]
        if rank != wanted:
            raise UserError(
                f"config.loss.name compares factors, but lora.rank is {rank} and an "
                f"adapter has rank {wanted}; expected lora.rank={wanted}, or "
                "loss.name=delta"
            )
        each = []
        for name, x in own.items():
            z = widen(x - targets[m][name]) / deviation[m][name][:, None]
            each.append(jnp.mean(jnp.square(z), axis=(-2, -1)))
        out[m] = sum(each[1:], each[0]) / len(each)
    return out


LOSSES: dict[str, SiteLoss] = {"delta": delta, "factors": factors}


def reconstruction(config: LossConfig, names: Sequence[str]) -> Objective:
    """Build the objective; `config.name` is a key of LOSSES, and "auto" is "delta".

    It is judged like a classification, by what the texts are answered.

    Raises:
      UserError: there is no such loss, or a field is set that it does not have.
    """
    if config != LossConfig(objective=config.objective, name=config.name):
        raise UserError(
            f"config.loss sets more than objective={config.objective} and a name, but "
            "a loss of adapters has no other fields; leave them out"
        )
    known = {"auto": delta, **LOSSES}
    loss = choose(known, config.name, "loss.name")
    judged = classification(LossConfig(), names)
    return judged._replace(reads=("task", "weight"), sums=_sums(loss), targets=True)


def _sums(loss: SiteLoss) -> Sums:
    def sums(
        model: Any, params: Params, adapter: Adapter, batch: Batch, key: Key | None
    ) -> tuple[jax.Array, jax.Array]:
        del key
        if "targets" not in params:
            raise UserError(
                "this objective learns given adapters, and there are none here; "
                "expected hypelora train with a set of tasks whose tasks name them in "
                "the field adapter"
            )
        if sign.NAME in adapter.factors:
            raise UserError(
                "config.condition.sign turns answers round, but this objective learns "
                "adapters and not answers; expected condition.sign=0"
            )
        made, task_U, weight_U = _by_condition(adapter, batch)
        given = params["targets"]
        # `take` gives NaN for an index that does not exist
        own = jax.tree.map(lambda x: jnp.take(x, task_U, axis=1), given["factors"])
        of_sites = loss(made, own, given["deviation"])
        loss_U = sum(jnp.sum(x_LU, axis=0) for x_LU in of_sites.values())
        loss_U = jnp.asarray(loss_U) / _sites(model)
        weight_U = weight_U.astype(loss_U.dtype)
        return total(loss_U, weight_U), jnp.sum(weight_U)

    return sums


def _by_condition(adapter: Adapter, batch: Batch) -> tuple[Lora, jax.Array, jax.Array]:
    """Return factors a_LUIR, and the task and the weight of all rows of each, (U,).

    The rows are U groups in order. If they have an index, as in a micro-batch that
    holds no whole groups, each row has its own factors.
    """
    made, row_B = adapter
    if any(x.ndim == 3 for x in jax.tree.leaves(made)):  # one condition, no axis U
        made = jax.tree.map(lambda x: x[:, None], made)
    elif row_B is not None:
        made = jax.tree.map(lambda x: jnp.take(x, row_B, axis=1), made)
    several = jax.tree.leaves(made)[0].shape[1]
    task_U = batch["task"].reshape(several, -1)[:, 0]
    return made, task_U, jnp.sum(batch["weight"].reshape(several, -1), axis=1)


def _sites(model: Any) -> int:
    """Return the number of adapted sites; all other layers are zero on both sides."""
    parts = model.parts
    both = [*parts.hyper_sites.values(), *parts.lora_sites.values()]
    return sum(len(site.layers) for site in both)
