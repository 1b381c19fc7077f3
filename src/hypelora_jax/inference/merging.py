"""A run whose adapter is added to the backbone's kernels, W + A B, once."""

import jax
import numpy as np

from hypelora_jax import trees
from hypelora_jax.adapters import lora
from hypelora_jax.inference.bank import mixes
from hypelora_jax.inference.predictor import Predictor
from hypelora_jax.types import Adapter, Batch, Params


def merged(predictor: Predictor) -> Predictor:
    """Return the predictor with merged weights; its program is the bare backbone's.

    The answerers have to be made again. A run that needs several passes or adapters is
    returned unchanged, and so is one that computes in bfloat16: W + A B would be
    rounded to it, which loses most of a small A B.
    """
    fitted = predictor.fitted
    narrow = np.dtype(fitted.session.settings.model.dtype).itemsize < 4
    if narrow or not mixes(predictor):
        return predictor
    params = trees.union(fitted.trainable, fitted.frozen)
    adapter = fitted.forward.adapt(params, np.asarray(fitted.alpha), {})
    backbone = params["backbone"]
    where = jax.tree.map(lambda x: x.sharding, backbone)
    kernels = jax.jit(lora.merge, out_shardings=where)(backbone, adapter.factors)

    def none(params: Params, alpha: jax.Array, conditions: Batch) -> Adapter:
        del params, alpha, conditions
        return Adapter({})

    forward = fitted.forward._replace(adapt=none)
    frozen = {**fitted.frozen, "backbone": kernels}
    return predictor._replace(fitted=fitted._replace(forward=forward, frozen=frozen))
