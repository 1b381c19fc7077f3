"""GLUE: one task, one method, MiniLM.

    hypelora train --config=glue:task=cola,method=hyper_mlp --workdir=runs/cola
    hypelora train --config=glue:task=mrpc,method=lora --workdir=runs/mrpc \
        --config.data.source=glue_dir --config.data.dir=GLUE

Arguments: `task` (cola sst2 mrpc qqp stsb mnli qnli rte wnli), `method`, `a`. The data
come from tensorflow-datasets, or with `glue_dir` from a folder in GLUE's official TSV
layout (`CoLA/train.tsv`, ...). Hardware: 2 CPU cores; an epoch of CoLA takes about a
minute. On CoLA, three seeds, HypeLoRA should reach an MCC of 0.177 ± 0.017 and LoRA
0.189 ± 0.011, both at lr 1e-3 (docs/results.md).
"""

from ml_collections import ConfigDict

from hypelora_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Three epochs of `method` on `task`."""
    arg = common.parse_arg(arg, task="cola", method="hyper_mlp", a="generated")
    config = common.with_method(arg)
    config.model.path = "minilm"  # 22M parameters, in the PyPI package
    config.data.source = "tfds"  # GLUE, downloaded and prepared once
    config.data.task = arg.task
    return config
