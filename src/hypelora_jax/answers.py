"""Predictions of a trained run for lines of JSON: labels, probabilities, sets."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hypelora_jax import evaluate, posthoc
from hypelora_jax.calibration import calibrators, conformal
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tasks import Task
from hypelora_jax.types import UserError

CHUNK = 512  # lines that are read before anything is computed


def predict_lines(
    workdir: str, lines: Iterable[str], sets: posthoc.SetMaker | None = None
) -> Iterator[str]:
    """JSON lines with `label`, `confidence` and `probs` added (regression: `score`).

    Args:
      workdir: of a trained run.
      lines: objects with "text", and "text_b" where the run was trained on pairs.
      sets: adds `set`, classes that hold the right one as often as asked.

    Raises:
      UserError: a line that is no such object, with its number; what came before it
        has been given. Or sets that cannot be made.
    """
    run = evaluate.open_run(workdir)
    threshold = None
    if sets is not None:
        threshold = posthoc.threshold(run.workdir, run.bench.task, run.calibrator, sets)
    numbered = ((i, line) for i, line in enumerate(lines, 1) if line.strip())
    while chunk := list(itertools.islice(numbered, CHUNK)):
        good, error = [], None
        for number, line in chunk:
            try:
                good.append(_parse(number, line, run.bench.task.pair))
            except UserError as e:
                error = e
                break
        if good:
            yield from _answers(run, good, threshold)
        if error is not None:
            raise error


def _parse(number: int, line: str, pair: bool) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as e:
        raise UserError(
            f'input line {number}: not JSON ({e}); wanted {{"text": ...}}'
        ) from None
    for name in ("text", "text_b") if pair else ("text",):
        value = row.get(name) if isinstance(row, dict) else None
        surrogate = isinstance(value, str) and not value.isascii() and _broken(value)
        if not isinstance(value, str) or not value.strip() or surrogate:
            raise UserError(
                f"input line {number}: {name!r} is {value!r}; wanted a text, not empty"
            )
    return row


def _broken(text: str) -> bool:
    """Half of a surrogate pair: JSON can hold it, UTF-8 and the tokenizer cannot."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def _answers(
    run: evaluate.Fitted,
    rows: list[dict[str, Any]],
    threshold: conformal.Threshold | None,
) -> Iterator[str]:
    task = run.bench.task
    n = len(rows)
    text_b = [row["text_b"] for row in rows] if task.pair else None
    table = Table(
        np.arange(n), [row["text"] for row in rows], text_b, np.zeros(n, np.int32)
    )
    logits_NY = evaluate.logits_of(run, evaluate.tokenised(run, table)).astype(
        np.float64
    )
    if task.kind == "regression":
        for row, score in zip(rows, logits_NY[:, 0], strict=True):
            yield json.dumps({**row, "score": float(score)})
        return
    probs_NY = calibrators.apply(run.calibrator, logits_NY)
    more = [{}] * n
    if threshold is not None:
        more = _sets(rows, task, probs_NY, threshold)
    for row, probs_Y, extra in zip(rows, probs_NY, more, strict=True):
        best = int(np.argmax(probs_Y))
        named = dict(zip(task.labels, map(float, probs_Y), strict=True))
        answer = {"label": task.labels[best], "confidence": float(probs_Y[best])}
        answer |= {"probs": named, **extra}
        yield json.dumps({**row, **answer}, ensure_ascii=False)


def _sets(
    rows: list[dict[str, Any]],
    task: Task,
    probs_NY: np.ndarray,
    threshold: conformal.Threshold,
) -> list[dict[str, list[str]]]:
    """`{"set": names}` of each row, the most probable class first."""
    names = ("text", "text_b") if task.pair else ("text",)
    u_N = [conformal.uniform_of("\0".join(row[n] for n in names)) for row in rows]
    member_NY = conformal.members(threshold, probs_NY, np.array(u_N))
    order_NY = np.argsort(-probs_NY, axis=1, kind="stable")
    return [
        {"set": [task.labels[k] for k in order_Y if member_Y[k]]}
        for order_Y, member_Y in zip(order_NY, member_NY, strict=True)
    ]
