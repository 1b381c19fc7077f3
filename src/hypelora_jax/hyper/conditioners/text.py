"""Embeddings of texts that describe what an adapter is for."""

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.hyper.conditioners.vectors import of_data, unit_rms_of
from hypelora_jax.types import Conditioner


def text(settings: Settings, sizes: Sizes) -> Conditioner:
    """The embeddings of `batch["condition"]`, (U, C) or (U, S, C), at unit RMS a layer.

    A frozen encoder has made them before. Under `condition.standardise` each entry has
    mean 0 and deviation 1 over train instead: that alone gives a root mean square near
    1, and a second scale for each vector would undo it.
    """
    if not sizes.vectors:
        raise UserError(
            "config.condition.source=text needs the width of the embeddings of "
            "descriptions; expected data that have descriptions, such as "
            "data.source=tasks (for hypelora plan: condition.width)"
        )
    scale = unit_rms_of(settings.condition.layers)
    return of_data("text", settings, sizes.slots, sizes.vectors, scale)
