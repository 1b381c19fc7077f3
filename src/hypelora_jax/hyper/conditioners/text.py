"""Embeddings of texts that describe what an adapter is for."""

import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.hyper.conditioners.vectors import of_data, unit_rms_of, whitened
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def text(settings: Settings, sizes: Sizes) -> Conditioner:
    """The embeddings of `batch["condition"]`, (U, C) or (U, S, C), at unit RMS a part.

    A frozen encoder has made them before. Under `condition.standardise` each entry has
    mean 0 and deviation 1 over train instead: that alone gives a root mean square near
    1, and a second scale for each vector would undo it. Under `condition.whiten` the
    last part is then multiplied by the frozen leaf `standard/whitening` (D, D), which
    `train.conditioning.wordings` fits.
    """
    condition = settings.condition
    if not sizes.vectors:
        raise UserError(
            "config.condition.source=text needs the width of the embeddings of "
            "descriptions; expected data that have descriptions, such as "
            "data.source=tasks (for hypelora plan: condition.width)"
        )
    scale = unit_rms_of(condition.parts)
    scaled = of_data("text", settings, sizes.slots, sizes.vectors, scale)
    if not condition.whiten:
        return scaled

    def init(key: Key) -> Params:
        own = scaled.init(key).get("standard", {})
        whitening = jnp.eye(sizes.vectors // condition.parts)
        return {"standard": {**own, "whitening": whitening}}

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        found = scaled.apply(params, batch, key)
        x_USC = whitened(found.vectors_USC, params["standard"]["whitening"])
        return found._replace(vectors_USC=x_USC)

    return Conditioner(init, apply, scaled.reads, scaled.width)
