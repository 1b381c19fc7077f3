"""The embedded default: HypeLoRA for MiniLM on 10,605 rated sentences of film reviews.

    make demo                                             LoRA, HypeLoRA and head only
    hypelora train --config=demo --workdir=runs/demo      HypeLoRA alone
    hypelora train --config=demo:method=lora --workdir=runs/lora

Arguments: `method`, `a`. Hardware: 2 CPU cores; installation and the three runs are to
stay within 10 minutes, with an accuracy of at least 0.83 for LoRA and HypeLoRA, within
0.015 of each other and at least 0.02 above head only. Measured so far (2026-11-24, on a
busy machine): LoRA 0.813 on validation after its epoch, so the aim is not met yet.
"""

from ml_collections import ConfigDict

from hypelora_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """One epoch of `method` on movie_reviews."""
    arg = common.parse_arg(arg, method="hyper_mlp", a="generated")
    config = common.with_method(arg)
    config.model.path = "minilm"  # 22M parameters, in the PyPI package
    config.data.source = "movie_reviews"  # in vaderSentiment's source distribution
    config.optim.num_epochs = 1
    return config
