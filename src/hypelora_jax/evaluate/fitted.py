"""A fitted model: chosen parameters and a calibrator, ready to predict."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from hypelora_jax.data.batches import Dataset, dataset
from hypelora_jax.data.layouts.task_batches import Entries
from hypelora_jax.data.tables import Corpus, Table
from hypelora_jax.errors import UserError
from hypelora_jax.objectives.judging import Labelled
from hypelora_jax.run.paths import Run
from hypelora_jax.train.scoring import Forward
from hypelora_jax.train.session import Session, load_corpus
from hypelora_jax.types import Params


class Answer(NamedTuple):
    """Predictions of N examples.

    softmax(logits / T) is the averaged probability, where T is the training temperature
    of the run (1 unless it learned one). A regression's logit is the mean score.
    """

    logits: np.ndarray  # (N, Y)
    members: np.ndarray | None = None  # (K, N, Y) raw; None if nothing is averaged


Answerer = Callable[[Dataset], Answer]


def unanswered(data: Dataset) -> Answer:
    """Placeholder for `Fitted.answer` until `averaging.answerer` provides it."""
    del data
    raise ValueError(
        "this model cannot answer yet; set `answer` with averaging.answerer first"
    )


class Fitted(NamedTuple):
    """A model ready to use, with its chosen parameters and its calibrator."""

    run: Run
    session: Session
    forward: Forward
    trainable: Params
    frozen: Params
    alpha: jax.Array
    step: int
    calibrator: Any  # state; turns raw logits into probabilities
    uncalibrated: float  # divides logits if no post-hoc calibrator does
    examples: Labelled | None = None  # calibrators and sets are fitted on these
    answer: Answerer = unanswered  # predictions by uncertainty.kind

    @property
    def probabilistic(self) -> bool:
        """Whether outputs are logits of classes, which can be calibrated."""
        return self.session.model.objective.probabilistic


def corpus_of(fitted: Fitted) -> Corpus:
    """Load the data of a run, which must have the classes and tasks of training.

    Raises:
      UserError: the data cannot be loaded, or have other ones.
    """
    session, workdir = fitted.session, fitted.run.path
    corpus, known = load_corpus(session.settings), session.task_set
    if corpus.task.labels != session.task.labels:
        raise UserError(
            f"the data now has classes {corpus.task.labels}, but the run was trained "
            f"for {session.task.labels}; restore the data or train again"
        )
    if corpus.tasks != known:
        raise UserError(
            f"the tasks have changed since {workdir} was trained (its tasks.json has "
            "those of then); restore config.tasks.file or train again"
        )
    return corpus


def tokenised(fitted: Fitted, table: Table, description: int = 0) -> Dataset:
    """Tokenise a table for the run's model.

    With a number, from 1, each task is conditioned on that one of its descriptions, and
    not on the mean of all of them.

    Raises:
      UserError: the run reads no descriptions, or a task of the table has fewer.
    """
    session = fitted.session
    limit = session.settings.data.max_length
    data = dataset(table, session.tokenizer, limit, session.tasks)
    return _with_description(fitted, data, description) if description else data


def with_conditions(data: Dataset, conditions: Entries) -> Dataset:
    """Return data of a set of tasks with other conditions of these tasks."""
    assert data.tasks is not None
    return data._replace(tasks=data.tasks._replace(conditions=conditions))


def _with_description(fitted: Fitted, data: Dataset, number: int) -> Dataset:
    tasks, arrays = fitted.session.task_set, data.tasks
    if tasks is None or arrays is None or "condition" not in arrays.choices:
        raise UserError(
            f"--description={number} chooses a description of each task, but "
            f"{fitted.run.path} reads none; expected a run with condition.source=text, "
            "or no --description"
        )
    choices = arrays.choices["condition"]
    assert data.task is not None  # the splits of a set have it
    for k in np.unique(data.task):
        if not 1 <= number <= len(choices[k]):
            raise UserError(
                f"--description is {number}, but the task {tasks.names[k]} has "
                f"{len(choices[k])} descriptions; expected 1 to that number, or no "
                "--description for the mean over all of them"
            )
    x_KC = np.stack([x[min(number, len(x)) - 1] for x in choices])
    return with_conditions(data, {**arrays.conditions, "condition": x_KC})
