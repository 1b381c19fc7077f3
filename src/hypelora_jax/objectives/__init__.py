"""What is learned and how it is judged: objectives, their losses and penalties.

An objective sees a model's outputs and labels; it knows no files, no devices and no
transformer, and nothing here imports the model that it is given.
"""

from collections.abc import Callable, Sequence

from hypelora_jax.config.settings import LossConfig
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import choose
from hypelora_jax.objectives.classification import classification
from hypelora_jax.objectives.regression import regression
from hypelora_jax.types import Objective

BuildObjective = Callable[[LossConfig, Sequence[str]], Objective]
# The kind of a task names its objective; config.loss.objective can name another.
OBJECTIVES: dict[str, BuildObjective] = {
    "classification": classification,
    "regression": regression,
}


def of(task: Task, config: LossConfig | None = None) -> Objective:
    """The objective of a task; without a config, with the default loss.

    Raises:
      UserError: no such objective, or a loss that does not fit it.
    """
    config = LossConfig() if config is None else config
    name = task.kind if config.objective == "auto" else config.objective
    return choose(OBJECTIVES, name, "loss.objective")(config, task.metrics)
