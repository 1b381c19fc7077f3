"""Checks, without an encoder, that a set of tasks has what a run learns from."""

from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.model import Model
from hypelora_jax.train.conditioning import opposites, targets


def check(settings: Settings, model: Model, tasks: TaskSet | None) -> None:
    """Check the tasks of a run; None if its data are a single task.

    Raises:
      UserError: `select_on=margin` has no tasks to compare; `condition.sign` finds no
        two training tasks that negate each other; the model trains parameters for
        each task, and there are held-out tasks; or a task has no adapter to learn.
    """
    reads = () if model.parts.cond is None else tuple(model.parts.cond.reads)
    if settings.select_on == "margin" and (tasks is None or not reads):
        raise UserError(
            "config.select_on=margin compares conditions of tasks, but this run has "
            "none; expected data.source=tasks with condition.source=text, or "
            "select_on=calibration"
        )
    given = model.objective.targets  # adapters with their heads, of all tasks
    if given:
        targets.check(settings, model, tasks)
    if tasks is None:
        return
    _check_held_out(tasks, {*reads, *(() if given else model.parts.head.reads)})
    if settings.condition.sign:
        opposites.pairs(tasks)


def _check_held_out(tasks: TaskSet, reads: set[str]) -> None:
    """Refuse held-out tasks in a run that has parameters for each task."""
    held_out = [n for n, out in zip(tasks.names, tasks.held_out, strict=True) if out]
    if held_out and {"which", "task"} & reads:
        raise UserError(
            f"the task {held_out[0]} is held out, so a row or layer of its own would "
            "never be trained; expected role train for all tasks, or "
            "condition.source=text or set and head.kind=classes or label_text"
        )
