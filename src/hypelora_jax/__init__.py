"""HypeLoRA in JAX: hyper-network-generated LoRA with calibrated confidence."""

__version__ = "0.1.0"


def load(workdir: str, **options):
    """Load a finished run: `hypelora_jax.load(workdir).predict(["A text."])`.

    See `hypelora_jax.inference.predictor.load` for the options and errors.
    """
    from hypelora_jax.inference import (
        predictor,  # local, so that importing the package stays cheap
    )

    return predictor.load(workdir, **options)
