"""Objectives define what a model learns and how it is judged: losses and penalties.

An objective sees only the outputs of a model and the labels. It does not know files,
devices or the transformer, and nothing here imports a model.
"""

from collections.abc import Callable, Sequence

from hypelora_jax.config.settings import LossConfig
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import choose
from hypelora_jax.objectives.classification import classification
from hypelora_jax.objectives.reconstruction import reconstruction
from hypelora_jax.objectives.regression import regression
from hypelora_jax.types import Objective

HEAD = "head/.*"  # the pattern of the head in the methods
BuildObjective = Callable[[LossConfig, Sequence[str]], Objective]
# The kind of a task names its objective; config.loss.objective can name another.
OBJECTIVES: dict[str, BuildObjective] = {
    "classification": classification,
    "regression": regression,
    "reconstruction": reconstruction,
}


def of(task: Task, config: LossConfig | None = None) -> Objective:
    """Build the objective of a task; without a config it has the default loss.

    Raises:
      UserError: there is no such objective, or the loss does not fit it.
    """
    config = LossConfig() if config is None else config
    name = task.kind if config.objective == "auto" else config.objective
    return choose(OBJECTIVES, name, "loss.objective")(config, task.metrics)


def trained(objective: Objective, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return what trains of a method's patterns: no head if adapters are learned."""
    return tuple(p for p in patterns if not objective.targets or p != HEAD)
