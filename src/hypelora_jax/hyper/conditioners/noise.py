"""Random vectors: one network gives many adapters of the same task."""

import jax

from hypelora_jax.config.settings import Settings
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.hyper.conditioners.vectors import DEFAULT_WIDTH
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params


def noise(settings: Settings, sizes: Sizes) -> Conditioner:
    """Draws z ~ N(0, I) of width C; Krueger et al. (2017), "Bayesian hypernetworks".

    With a key, K vectors are drawn anew: one, or one for each member of a
    hyper-ensemble, and then `batch["row"]` gives the member of each row. Without a key
    they are the frozen leaf `noise/draws` (K, C).
    """
    del sizes
    members = settings.uncertainty.conditions
    width = settings.condition.width or DEFAULT_WIDTH

    def init(key: Key) -> Params:
        return {"noise": {"draws": jax.random.normal(key, (members, width))}}

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        z_KC = params["noise"]["draws"]
        if key is not None:
            z_KC = jax.random.normal(key, z_KC.shape, z_KC.dtype)
        return Conditions(z_KC[:, None], batch["row"] if len(z_KC) > 1 else None)

    return Conditioner(init, apply, {}, width)
