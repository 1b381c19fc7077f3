"""The embedded default: HypeLoRA for MiniLM on 10,605 rated sentences of film reviews.

    make demo                                             LoRA, HypeLoRA and head only
    hypelora train --config=demo --workdir=runs/demo      HypeLoRA alone
    hypelora train --config=demo:method=lora --workdir=runs/lora

Arguments: `method`, `a`. Hardware: 2 CPU cores; installation and the three runs take at
most 10 minutes. On the test split, LoRA and HypeLoRA should reach an accuracy of at
least 0.83, at most 0.015 apart and at least 0.02 above head only. docs/results.md has
the measured numbers.
"""

from ml_collections import ConfigDict

from hypelora_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Two epochs of `method` on movie_reviews."""
    arg = common.parse_arg(arg, method="hyper_mlp", a="generated")
    config = common.with_method(arg)
    config.model.path = "minilm"  # 22M parameters, in the PyPI package
    config.data.source = "movie_reviews"  # in vaderSentiment's source distribution
    config.optim.num_epochs = 2
    if arg.method != "head":
        # Of 1e-3 and 2e-3, the better one by accuracy after one and two epochs.
        config.optim.lr = 2e-3
    return config
