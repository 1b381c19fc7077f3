"""Vectors that come with the examples of the data, as they are."""

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.hyper.conditioners.vectors import of_data
from hypelora_jax.types import Conditioner


def given(settings: Settings, sizes: Sizes) -> Conditioner:
    """The vectors of `batch["condition"]`, (U, C) or (U, S, C).

    Under `condition.standardise` each entry has mean 0 and deviation 1 over train.
    """
    if not sizes.vectors:
        raise UserError(
            "config.condition.source=given needs a vector with each example; name "
            "their column with config.data.condition=COLUMN, or a file of them with "
            "config.condition.file=FILE.npz (for hypelora plan: condition.width)"
        )
    return of_data("given", settings, sizes.slots, sizes.vectors, lambda x: x)
