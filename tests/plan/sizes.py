"""Settings of a small plan, and bytes of the trees of a planned step."""

import jax

from hypelora_jax import trees
from hypelora_jax.config.settings import from_dict
from hypelora_jax.plan.program import Step


def summed(step: Step) -> int:
    """Float32 gradients of the placed factors and of the head."""
    state, frozen, _ = step.arguments
    params = trees.union(state.params, frozen)
    lora = jax.eval_shape(lambda p: step.model.adapt(p, {}, 0.0, None), params)
    return trees.nbytes(lora) + trees.nbytes(params["head"])


def network(step: Step) -> int:
    """Trainable part of the hyper-network."""
    return trees.nbytes(step.arguments[0].params["hyper"])


def settings(**sections):
    tree = {
        "model": {"path": "random:tiny"},
        "data": {"source": "synthetic", "max_length": 16},
        "hyper": {"widths": [64], "cond_dim": 16},
        "lora": {"rank": 2},
        "optim": {"batch_size": 32},
    }
    for name, value in sections.items():
        tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
    return from_dict(tree)
