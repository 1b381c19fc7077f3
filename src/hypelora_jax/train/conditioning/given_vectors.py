"""Checks of the vectors that come with the data, and how they are standardised."""

from collections.abc import Mapping

import numpy as np
from absl import logging

from hypelora_jax import trees
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.conditions import Given
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners.joins import JOINS
from hypelora_jax.model import Model
from hypelora_jax.sharding import rules
from hypelora_jax.types import Params

Moments = tuple[np.ndarray, np.ndarray]  # mean and deviation (C,)


def check(settings: Settings, model: Model, given: Given | None) -> None:
    """Check that the model reads the vectors of train, and log what they are.

    Raises:
      UserError: the data have vectors that the model does not read, or the model reads
        vectors that the data do not have.
    """
    condition = settings.condition
    reads = "condition" in model.reads
    if given is None and reads:
        raise UserError(
            "the model reads conditions, but the data have none; expected "
            "config.data.condition=COLUMN or config.condition.file=FILE.npz"
        )
    if given is not None and not reads:
        raise UserError(
            "the data have conditions, but "
            f"config.condition.source={condition.source} reads none; expected "
            "condition.source=given, or no data.condition and condition.file"
        )
    if given is None:
        return
    shape = given.vectors.shape
    logging.info("conditions: %d distinct ones of shape %s", shape[0], shape[1:])
    if condition.distinct not in (0, shape[0]):
        raise UserError(
            f"config.condition.distinct is {condition.distinct}, but train has "
            f"{shape[0]} distinct conditions; set it to that, or leave it out"
        )
    _check_slots(model, condition.join, shape[1:])


def _check_slots(model: Model, join: str, shape: tuple[int, ...]) -> None:
    """Refuse vectors (S, C) for another S, and (C,) where nothing tells slots apart."""
    hyper = model.parts.hyper
    slots = 0 if hyper is None else hyper.slots
    if len(shape) == 2 and shape[0] != slots:
        raise UserError(
            f"each condition of the data has {shape[0]} vectors; expected one for "
            f"each of the {slots} slots of the hyper-network, or one list of numbers "
            "for all"
        )
    if len(shape) == 1 and not JOINS[join].describes:
        raise UserError(
            f"config.condition.join={join} leaves out what tells sites apart, but "
            "each condition of the data is one list of numbers for all sites; "
            f"expected one list for each of the {slots} slots, or "
            "condition.join=concat"
        )


def standardised(frozen: Params, path: str, moments: Moments) -> Params:
    """Return the frozen tree with a mean and deviation, placed as they were.

    `path` is that of the leaves, such as "cond/standard".
    """
    mean, std = moments
    return placed(frozen, {f"{path}/mean": mean, f"{path}/std": std})


def placed(frozen: Params, leaves: Mapping[str, np.ndarray]) -> Params:
    """Return the frozen tree with other leaves, by path, on the devices of the old."""
    flat = trees.flatten(frozen)
    for path, found in leaves.items():
        x = flat[path]
        own = {path: np.broadcast_to(found.astype(x.dtype), x.shape)}
        flat[path] = rules.place(own, {path: x.sharding})[path]
    return trees.unflatten(flat)
