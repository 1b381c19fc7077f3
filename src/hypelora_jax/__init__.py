"""HypeLoRA in JAX: hyper-network-generated LoRA with calibrated confidence.

    base = hypelora_jax.base_model("minilm")
    model = hypelora_jax.build(base, labels=("negative", "positive"))
    step = hypelora_jax.train_step(model, optax.adamw(1e-3))

The functions below are imported when they are first used, so that importing the package
stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypelora_jax.api.base_models import base_model
    from hypelora_jax.api.finished_runs import load
    from hypelora_jax.api.models import adapter, build, train_step
    from hypelora_jax.api.probabilities import calibrate, metrics

__version__ = "0.1.0"
__all__ = [
    "adapter",
    "base_model",
    "build",
    "calibrate",
    "load",
    "metrics",
    "train_step",
]
_MODULES = {
    "adapter": "api.models",
    "base_model": "api.base_models",
    "build": "api.models",
    "calibrate": "api.probabilities",
    "load": "api.finished_runs",
    "metrics": "api.probabilities",
    "train_step": "api.models",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
