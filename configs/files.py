"""Your own data: CSV, TSV, JSON lines or Parquet, by the files' suffix.

    hypelora train --config=files --workdir=runs/mine \
        --config.data.train=train.csv --config.data.validation=validation.csv
    hypelora train --config=files:method=lora --workdir=runs/mine \
        --config.data.train=pairs.jsonl --config.data.text=claim \
        --config.data.text_b=evidence --config.data.label=verdict

Arguments: `method`, `a`. Columns that are not given are found by name: `text`,
`sentence`, `sentence1`, `premise` or `question`; `text_b`, `sentence2`, `hypothesis` or
`question2`; `label`. Without a validation file, a tenth of train is held out. With
`--config.condition.source=given` and `--config.data.condition=COLUMN`, each row has a
vector, and the hyper-network generates an adapter for it (docs/conditions.md).
Hardware: any; on 2 CPU cores MiniLM trains on about 50 to 100 short texts a second. The
numbers to reach depend on your task.
"""

from ml_collections import ConfigDict

from hypelora_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Three epochs of `method` on the files given with `--config.data.train=...`."""
    arg = common.parse_arg(arg, method="hyper_mlp", a="generated")
    config = common.with_method(arg)
    config.model.path = "minilm"  # 22M parameters, in the PyPI package
    config.data.source = "files"
    return config
