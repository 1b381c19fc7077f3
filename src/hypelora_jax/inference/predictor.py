"""A finished run, loaded once, that answers texts with labels and probabilities.

Every shape that can be compiled is known when the run is loaded: the lengths are the
run's buckets and their doublings up to data.max_length, and the numbers of rows are the
batch sizes asked for. The adapters are made for the first question and then kept;
compiled programs take them as arguments.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration import calibrators, conformal
from hypelora_jax.config.settings import Settings
from hypelora_jax.data import buckets
from hypelora_jax.data.batches import Dataset
from hypelora_jax.data.conditions import Given, Vectors
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tasks import Task
from hypelora_jax.data.tokens import Encoded
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import calibration_split, evaluation
from hypelora_jax.evaluate.averaging import Answerer
from hypelora_jax.inference import answers, asked_tasks, condition_vectors
from hypelora_jax.inference.answers import Fields
from hypelora_jax.inference.asked_tasks import TaskReader
from hypelora_jax.inference.texts import Text, as_fields
from hypelora_jax.sharding.mesh import fitting_batch_size
from hypelora_jax.train.divergence import NotFinite, check_outputs

WINDOW = 2048  # texts sorted into length buckets at a time; this bounds the memory


class Answers(NamedTuple):
    """Answers in the order of the texts; `cut` counts texts over data.max_length."""

    fields: list[Fields]
    cut: int


class Predictor(NamedTuple):
    """A fitted model and how it answers; made by `load`.

    `answerers` maps a number of rows, ascending, to the function that predicts in
    batches of that size.
    """

    fitted: evaluation.Fitted
    answerers: dict[int, Answerer]
    edges: tuple[int, ...]  # every length T that may be compiled
    threshold: conformal.Threshold | None = None  # of conformal sets
    abstain: float = 0.0  # confidence below which no label is given
    vectors: Vectors | None = None  # reads the condition of each text, if there are any
    tasks: TaskReader | None = None  # reads the task of each text, if it has adapters
    packs: int = 0  # texts of at most so many tokens share rows of this length T

    @property
    def task(self) -> Task:
        """The task of the run, with the names of its classes."""
        return self.fitted.session.task

    @property
    def settings(self) -> Settings:
        """The settings the run was trained with."""
        return self.fitted.session.settings

    @property
    def probabilistic(self) -> bool:
        """Whether answers are classes with probabilities, and not numbers."""
        return self.fitted.probabilistic

    @property
    def columns(self) -> list[str]:
        """Columns that the answers add to a table."""
        if not self.probabilistic:
            return ["label", "score"]
        sets, abstains = self.threshold is not None, bool(self.abstain)
        return answers.columns_of_classes(self.task.labels, sets, abstains)

    def predict(
        self, texts: Sequence[Text], conditions: Sequence[Any] | None = None
    ) -> list[Fields]:
        """Answer each text, or pair of texts, in order.

        Args:
          texts: texts, or pairs of texts.
          conditions: if the run's data have conditions, one for each text: a vector, or
            an id in the run's condition.file.

        Returns:
          For a classifier `label`, `confidence` in [0, 1] and the calibrated `probs`,
          {label: p}, with `set` and `abstained` if they were asked for. For a
          regression `label` and `score`, which are the same number.

        Raises:
          UserError: something is not a text, or not a pair if the run needs pairs; a
            condition is missing or is not one that the run reads, or it reads more.
          NotFinite: the outputs for a text are NaN or infinite.
        """
        if isinstance(texts, str):
            raise UserError(
                f"texts is the single text {texts[:40]!r}; expected a list of texts"
            )
        condition_vectors.check_alone(self.fitted)
        fields = [as_fields(text, i, self.task.pair) for i, text in enumerate(texts)]
        given = condition_vectors.checked(self.vectors, conditions, len(fields))
        out: list[Fields] = []
        for i in range(0, len(fields), WINDOW):
            own = None if given is None else given[i : i + WINDOW]
            try:
                out += answer(self, fields[i : i + WINDOW], own).fields
            except NotFinite as e:
                rows = i + e.rows
                raise NotFinite(rows, f"texts[{rows[0]}]") from None
        return out

    def warm(self) -> dict[tuple[int, int], float]:
        """Compile every shape, so that no later question waits for the compiler.

        Returns:
          {(rows, T): seconds}, the time of one compiled batch of each shape.
        """
        out = {}
        for rows, predict in self.answerers.items():
            given = None
            if self.vectors is not None:  # any vector will do
                given = [np.zeros(self.vectors.shape, np.float32)] * rows
            for edge in self.edges:
                if edge < self.packs and rows > min(self.answerers):
                    continue  # only the smallest batches have shorter rows
                tokens = np.zeros(edge, np.int32)  # any token will do
                data = token_dataset(self, [tokens] * rows, [tokens] * rows, given)
                _seconds(predict, data)  # compiles
                out[rows, edge] = min(_seconds(predict, data) for _ in range(2))
        return out


def _seconds(predict: Answerer, data: Dataset) -> float:
    start = time.perf_counter()
    with contextlib.suppress(NotFinite):  # a question gets that answer, not the start
        predict(data)
    return time.perf_counter() - start


def load(
    workdir: str,
    coverage: float | None = None,
    sets: str = "thr",
    by_class: bool = False,
    abstain: float | None = None,
    batch_sizes: Sequence[int] = (),
    like: evaluation.Fitted | None = None,
) -> Predictor:
    """Load a finished run to predict with its calibrator and kind of uncertainty.

    Args:
      workdir: folder of a trained or imported run.
      coverage: add conformal sets that contain the right class this often, such as 0.9.
      sets: kind of the sets: thr, aps or raps.
      by_class: calibrate the sets class by class.
      abstain: give no label if the confidence is below this.
      batch_sizes: rows of the compiled batches, rounded up to a multiple of the
        devices; a question uses the smallest that fits it. () uses the run's own size.
      like: an open run from which this one has no `evaluation.difference`; its programs
        and its backbone are used, so nothing is compiled. None uses the run's own.

    Raises:
      UserError: the run does not exist, or it predicts a number, for which there are
        no conformal sets and no abstention.
    """
    if like is None:
        fitted = evaluation.open_fitted(workdir)
    else:
        fitted = evaluation.open_like(workdir, like)
    _check_abstention(fitted, abstain)
    session, vectors = fitted.session, condition_vectors.reader(fitted)
    tasks = asked_tasks.reader(fitted, vectors)
    if tasks is None:
        condition_vectors.check_alone(fitted)
    threshold = None
    if coverage is not None:
        maker = calibration_split.SetMaker(coverage, sets, by_class)
        threshold = calibration_split.threshold(
            fitted.run, session.task, fitted.calibrator, maker
        )
    edges = buckets.extended(session.edges, session.settings.data.max_length)
    asked = batch_sizes or (session.settings.optim.batch_size,)
    sizes = sorted({fitting_batch_size(size, session.mesh) for size in asked})
    answerers = {rows: evaluation.answerer(fitted, edges, rows) for rows in sizes}
    own = (threshold, abstain or 0.0, vectors, tasks)
    return Predictor(fitted, answerers, edges, *own)


def _check_abstention(fitted: evaluation.Fitted, abstain: float | None) -> None:
    if abstain is None:
        return
    if not fitted.probabilistic:
        raise UserError(
            f"abstain={abstain:g} asks for a confidence, but this run predicts a "
            "number; leave it out"
        )
    if not 0 < abstain <= 1:
        raise UserError(f"abstain is {abstain:g}; expected above 0 and at most 1")


def answer(
    predictor: Predictor,
    texts: Sequence[tuple[str, ...]],
    vectors: Sequence[Any] | None = None,
) -> Answers:
    """Answer checked texts and vectors, all of them in memory at once.

    Raises:
      NotFinite: the outputs for a text are NaN or infinite.
    """
    n = len(texts)
    if not n:
        return Answers([], 0)
    encoded = tokenise(predictor, texts)
    data = token_dataset(predictor, encoded.ids, encoded.types, vectors)
    fitting = [rows for rows in predictor.answerers if rows >= n]
    rows = fitting[0] if fitting else max(predictor.answerers)
    return Answers(batch_answers(predictor, texts, data, rows), encoded.truncated)


def tokenise(predictor: Predictor, texts: Sequence[tuple[str, ...]]) -> Encoded:
    """Tokenise checked texts for the run's model."""
    second = [text[1] for text in texts] if predictor.task.pair else None
    index = np.arange(len(texts))
    table = Table(index, [text[0] for text in texts], second, -np.ones_like(index))
    return evaluation.tokenised(predictor.fitted, table).encoded


def token_dataset(
    predictor: Predictor,
    ids: list[np.ndarray],
    types: list[np.ndarray],
    vectors: Sequence[Any] | None = None,
) -> Dataset:
    """Make a dataset without labels from token ids and segment types, int32 arrays.

    `vectors` has one condition for each text, so that a batch always has the same
    shapes.
    """
    given = None if vectors is None else Given(np.stack(vectors))
    unlabelled, index = np.full(len(ids), -1, np.int32), np.arange(len(ids))
    pad_id = predictor.fitted.session.tokenizer.pad_id
    tokens = Encoded(ids, types, 0)
    return Dataset(tokens, unlabelled, None, index, pad_id, condition=given)


def batch_answers(
    predictor: Predictor, texts: Sequence[tuple[str, ...]], data: Dataset, rows: int
) -> list[Fields]:
    """Answer texts, whose tokens are in `data`, in batches of this many rows.

    Raises:
      NotFinite: the outputs for a text, or the probabilities that the calibrator makes
        of them, are NaN or infinite.
    """
    return of_logits(predictor, texts, predictor.answerers[rows](data).logits)


def of_logits(
    predictor: Predictor, texts: Sequence[tuple[str, ...]], logits_NY: np.ndarray
) -> list[Fields]:
    """Answer texts from their raw logits (N, Y).

    Raises:
      NotFinite: the probabilities that the calibrator makes are NaN or infinite.
    """
    logits_NY = logits_NY.astype(np.float64)
    if not predictor.probabilistic:
        return answers.of_scores(logits_NY)
    probs_NY = calibrators.apply(predictor.fitted.calibrator, logits_NY)
    check_outputs(probs_NY)
    member_NY = None
    if predictor.threshold is not None:
        u_N = np.array([conformal.uniform_of("\0".join(text)) for text in texts])
        member_NY = conformal.members(predictor.threshold, probs_NY, u_N)
    labels = predictor.task.labels
    return list(answers.of_classes(labels, probs_NY, member_NY, predictor.abstain))
