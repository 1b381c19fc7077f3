"""Check that everything runs: a tiny random BERT on synthetic text, under a minute.

    make smoke
    hypelora train --config=smoke --workdir=runs/smoke

Arguments: `method`, `a`. Hardware: a CPU. The run needs no download and no pretrained
weights. It should reach a validation NLL of about 0.56 nats (chance is log 2 = 0.69,
the entropy of the grammar is 0.35) and an accuracy of about 0.68. The numbers say
nothing about the methods.
"""

from ml_collections import ConfigDict

from hypelora_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Four epochs of `method` on 1,024 synthetic sentences."""
    arg = common.parse_arg(arg, method="hyper_mlp", a="generated")
    config = common.with_method(arg)
    config.model.path = "random:tiny"  # random weights and a byte tokenizer
    config.data.source = "synthetic"  # a small grammar, drawn by seed
    config.data.num_examples = 1024
    config.data.max_length = 64
    config.hyper.widths = (32,)
    config.hyper.cond_dim = 16
    config.lora.rank = 2
    config.optim.num_epochs = 4
    config.optim.lr = 1e-2
    config.optim.head_lr = 0.0  # as lr: random weights need no protection
    config.optim.trunk_lr = 0.0  # as lr: at less it hardly moves in so few steps
    return config
