"""HypeLoRA in JAX: hyper-network-generated LoRA with calibrated confidence."""

__version__ = "0.1.0"


def load(workdir: str, **options):
    """A finished run that predicts: `hypelora_jax.load(workdir).predict(["A text."])`.

    Options and errors are those of `hypelora_jax.inference.predictor.load`.
    """
    from hypelora_jax.inference import (
        predictor,  # here: importing the package stays cheap
    )

    return predictor.load(workdir, **options)
