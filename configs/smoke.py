"""Does everything run? A tiny random BERT on synthetic text, under a minute on a CPU.

    make smoke
    hypelora train --config=smoke --workdir=runs/smoke

Arguments: `method`, `a`. No download, no pretrained weights. The loss should be finite,
about log 2 = 0.69 nats; the accuracy, near one half, says nothing about the methods.
"""

from ml_collections import ConfigDict

from hypelora_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Two epochs of `method` on 256 synthetic sentences."""
    arg = common.parse_arg(arg, method="hyper_mlp", a="generated")
    config = common.with_method(arg)
    config.model.path = "random:tiny"  # random weights and a byte tokenizer
    config.data.source = "synthetic"  # a small grammar, made by seed
    config.data.num_examples = 256
    config.data.max_length = 64
    config.hyper.widths = (32,)
    config.hyper.cond_dim = 16
    config.lora.rank = 2
    config.optim.num_epochs = 2
    return config
