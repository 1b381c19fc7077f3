"""A finished run, loaded once and asked often: texts in, labels and probabilities out.

Every shape that is compiled is known beforehand: the run's buckets and their doublings
up to data.max_length, times the batch sizes asked for. The adapters are made at the
first question and kept; compiled programs take them as arguments.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration import calibrators, conformal
from hypelora_jax.data import buckets
from hypelora_jax.data.batches import Dataset
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tasks import Task
from hypelora_jax.data.tokens import Encoded
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import calibration_split, evaluation
from hypelora_jax.evaluate.averaging import Answerer
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding.mesh import BATCH

WINDOW = 2048  # texts sorted into length buckets at a time: bounds memory
Text = str | tuple[str, str]


class Answers(NamedTuple):
    """Answers in the order of the texts; `cut` counts those cut to data.max_length."""

    fields: list[dict[str, Any]]
    cut: int


class Loaded(NamedTuple):
    """A run ready to answer; made by `load`.

    `answerers` maps a number of rows, ascending, to what predicts in batches of it.
    """

    run: evaluation.Fitted
    answerers: dict[int, Answerer]
    edges: tuple[int, ...]  # every T that may be compiled
    threshold: conformal.Threshold | None = None  # of conformal sets
    abstain: float = 0.0  # confidence below which no label is given

    @property
    def task(self) -> Task:
        """What the run was trained for, with the names of its classes."""
        return self.run.bench.task

    def predict(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """The answer to each text, or pair of texts, in their order.

        Returns:
          For classes `label`, `confidence` in [0, 1] and `probs`, {label: p}, as
          calibrated; `set` and `abstained` where they were asked for. For a regression
          `label` and `score`, the same number.

        Raises:
          UserError: something is no text, or no pair where the run wants pairs.
        """
        if isinstance(texts, str):
            raise UserError(f"texts is the text {texts[:40]!r}; wanted a list of texts")
        fields = [as_fields(text, i, self.task.pair) for i, text in enumerate(texts)]
        starts = range(0, len(fields), WINDOW)
        parts = [answer(self, fields[i : i + WINDOW]).fields for i in starts]
        return [one for part in parts for one in part]

    def warm(self) -> dict[tuple[int, int], float]:
        """Compile every shape, so that no later question waits for it.

        Returns:
          {(rows, T): seconds} that a batch of each shape takes from then on.
        """
        out = {}
        for rows, predict in self.answerers.items():
            for edge in self.edges:
                tokens = np.zeros(edge, np.int32)  # any token will do
                data = of_tokens(self, [tokens] * rows, [tokens] * rows)
                predict(data)
                out[rows, edge] = min(_seconds(predict, data) for _ in range(2))
        return out


def _seconds(predict: Answerer, data: Dataset) -> float:
    start = time.perf_counter()
    predict(data)
    return time.perf_counter() - start


def load(
    workdir: str,
    coverage: float | None = None,
    sets: str = "thr",
    by_class: bool = False,
    abstain: float | None = None,
    batch_sizes: Sequence[int] = (),
) -> Loaded:
    """A finished run, ready to predict with its calibrator and kind of uncertainty.

    Args:
      workdir: of a trained or imported run.
      coverage: adds conformal sets that hold the right class so often, such as 0.9.
      sets: their kind, thr, aps or raps; by_class: calibrated class by class.
      abstain: no label where the confidence is below it.
      batch_sizes: rows of the batches that are compiled, rounded up to a multiple of
        the devices; the smallest that holds a question answers it. (): that of the run.

    Raises:
      UserError: no such run, or sets and abstention that cannot be had of it.
    """
    run = evaluation.open_run(workdir)
    task, settings = run.bench.task, run.bench.settings
    if abstain is not None and task.kind == "regression":
        raise UserError(
            f"--abstain={abstain:g} asks for a confidence, but this run predicts a "
            "number; leave the flag out"
        )
    if abstain is not None and not 0 < abstain <= 1:
        raise UserError(f"--abstain is {abstain:g}; wanted above 0, at most 1")
    threshold = None
    if coverage is not None:
        maker = calibration_split.SetMaker(coverage, sets, by_class)
        threshold = calibration_split.threshold(
            Run(run.workdir), task, run.calibrator, maker
        )
    edges = buckets.extended(run.edges, settings.data.max_length)
    ways = math.prod(run.bench.mesh.shape[name] for name in BATCH[0])
    asked = batch_sizes or (settings.optim.batch_size,)
    sizes = sorted({-(-size // ways) * ways for size in asked})
    answerers = {rows: evaluation.answerer(run, edges, rows) for rows in sizes}
    return Loaded(run, answerers, edges, threshold, abstain or 0.0)


def as_fields(text: Any, number: int, pair: bool) -> tuple[str, ...]:
    """The texts of one example, ("...",) or ("...", "...").

    Raises:
      UserError: it is something else; `number` says which.
    """
    parts = (text,) if isinstance(text, str) else text
    wanted = "a pair of texts" if pair else "a text"
    if not isinstance(parts, tuple | list) or len(parts) != 1 + pair:
        raise UserError(f"texts[{number}] is {text!r:.60}; wanted {wanted}")
    for part in parts:
        if what := fault(part):
            raise UserError(f"texts[{number}] is {text!r:.60}: {what}")
    return tuple(parts)


def fault(text: Any) -> str:
    """What is wrong with a text, "" where nothing is."""
    if not isinstance(text, str) or not text.strip():
        return "wanted a text, not empty"
    return "not Unicode; wanted whole characters" if broken(text) else ""


def broken(text: str) -> bool:
    """Half of a surrogate pair: JSON can spell it, UTF-8 and the tokenizer cannot."""
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def answer(loaded: Loaded, texts: Sequence[tuple[str, ...]]) -> Answers:
    """Answers to texts that have no fault, all of them in memory at once."""
    n = len(texts)
    if not n:
        return Answers([], 0)
    encoded = tokenised(loaded, texts)
    data = of_tokens(loaded, encoded.ids, encoded.types)
    fitting = [rows for rows in loaded.answerers if rows >= n]
    rows = fitting[0] if fitting else max(loaded.answerers)
    return Answers(fields_of(loaded, texts, data, rows), encoded.truncated)


def tokenised(loaded: Loaded, texts: Sequence[tuple[str, ...]]) -> Encoded:
    """Texts that have no fault as the run's model reads them."""
    second = [text[1] for text in texts] if loaded.task.pair else None
    index = np.arange(len(texts))
    table = Table(index, [text[0] for text in texts], second, -np.ones_like(index))
    return evaluation.tokenised(loaded.run, table).encoded


def of_tokens(
    loaded: Loaded, ids: list[np.ndarray], types: list[np.ndarray]
) -> Dataset:
    """Token ids and segment types of texts, int32 arrays, as a set without labels."""
    none, index = np.full(len(ids), -1, np.int32), np.arange(len(ids))
    pad_id = loaded.run.bench.tokenizer.pad_id
    return Dataset(Encoded(ids, types, 0), none, None, index, pad_id)


def fields_of(
    loaded: Loaded, texts: Sequence[tuple[str, ...]], data: Dataset, rows: int
) -> list[dict[str, Any]]:
    """The answers to texts, tokenised as `data`, in batches of so many rows."""
    logits_NY = loaded.answerers[rows](data).logits.astype(np.float64)
    if loaded.task.kind == "regression":
        scores = map(float, logits_NY[:, 0])
        return [{"label": score, "score": score} for score in scores]
    return list(_of_classes(loaded, texts, logits_NY))


def _of_classes(
    loaded: Loaded, texts: Sequence[tuple[str, ...]], logits_NY: np.ndarray
) -> Iterator[dict[str, Any]]:
    labels, abstain = loaded.task.labels, loaded.abstain
    probs_NY = calibrators.apply(loaded.run.calibrator, logits_NY)
    member_NY = None
    if loaded.threshold is not None:
        u_N = np.array([conformal.uniform_of("\0".join(text)) for text in texts])
        member_NY = conformal.members(loaded.threshold, probs_NY, u_N)
    for n, probs_Y in enumerate(probs_NY):
        best = int(np.argmax(probs_Y))
        out = {"label": labels[best], "confidence": float(probs_Y[best])}
        out["probs"] = dict(zip(labels, map(float, probs_Y), strict=True))
        if member_NY is not None:  # the most probable class first
            order = np.argsort(-probs_Y, kind="stable")
            out["set"] = [labels[k] for k in order if member_NY[n, k]]
        if abstain:
            out["abstained"] = out["confidence"] < abstain
            out["label"] = None if out["abstained"] else out["label"]
        yield out
