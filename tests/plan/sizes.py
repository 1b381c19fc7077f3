"""Bytes of the trees of a planned step."""

import jax

from hypelora_jax import trees
from hypelora_jax.plan.program import Step


def summed(step: Step) -> int:
    """Float32 gradients of the placed factors and of the head."""
    state, frozen, _ = step.arguments
    params = trees.union(state.params, frozen)
    lora = jax.eval_shape(
        lambda p: step.model.predictor.adapt(p, {}, 0.0, None), params
    )
    return trees.nbytes(lora) + trees.nbytes(params["head"])


def network(step: Step) -> int:
    """Trainable part of the hyper-network."""
    return trees.nbytes(step.arguments[0].params["hyper"])
