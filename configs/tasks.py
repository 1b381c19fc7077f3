"""A set of tasks: one network writes an adapter for each from its description.

    hypelora train --config=tasks --workdir=runs/tasks --config.tasks.file=tasks.yaml
    hypelora audit --workdir=runs/tasks --train_static=runs/static

Arguments: `method`, `a`. docs/tasks.md describes the file. Descriptions are embedded by
MiniLM, standardised over the training tasks, and whitened, so that wordings of one task
differ less. A step has 8 tasks with 4 rows of each. If some tasks are negations of
others, add `--config.condition.sign=5` (docs/conditions.md). A method without a
hyper-network, such as `tasks:method=lora`, trains one adapter for all tasks; the audit
trains such a run in runs/static. Hardware: 2 CPU cores; a step takes about 0.35 s. What
to reach depends on your tasks; docs/conditions.md has the numbers of the relabelling
benchmark.
"""

from ml_collections import ConfigDict

from hypelora_jax.configs import common
from hypelora_jax.model import METHODS

LR, TRUNK_RATE = 2e-3, 5e-4  # twice and five times those of one task


def get_config(arg: str | None = None) -> ConfigDict:
    """Three epochs of `method` on the tasks of `--config.tasks.file=FILE`."""
    arg = common.parse_arg(arg, method="hyper_mlp", a="generated")
    config = common.with_method(arg)
    config.model.path = "minilm"  # 22M parameters, in the PyPI package
    config.data.source = "tasks"
    config.tasks.balanced = True
    config.lora.alpha = 16.0
    method = METHODS.get(arg.method)
    if method is not None and method.network is not None:
        config.optim.lr, config.optim.trunk_lr = LR, TRUNK_RATE
        config.condition.source = "text"
        config.condition.standardise = True
        config.condition.whiten = True
        config.hyper.cond = "layer_module"
    return config
