"""Evaluation and prediction of a trained run, from its folder."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from hypelora_jax import folder, store
from hypelora_jax.calibration import calibrators
from hypelora_jax.data.pipeline import Dataset, dataset, warn_of_cuts
from hypelora_jax.data.tables import Table
from hypelora_jax.report import plots, predictions
from hypelora_jax.train import loop, setup, validate
from hypelora_jax.train.setup import Workbench
from hypelora_jax.types import Params, UserError

CHUNK = 512  # lines `predict` reads before it computes


class Fitted(NamedTuple):
    """A model ready to use: parameters chosen, calibrator if there is one."""

    workdir: epath.Path
    bench: Workbench
    forward: validate.Forward
    trainable: Params
    frozen: Params
    alpha: jax.Array
    step: int
    edges: tuple[int, ...]
    temperature: float  # what divides the logits
    uncalibrated: float  # what would, without the post-hoc calibrator


def open_run(workdir: str) -> Fitted:
    """The chosen model of a run folder.

    Raises:
      UserError: no finished epoch there, or files that do not fit together.
    """
    path, record = folder.wanted_record(workdir)
    settings = folder.settings_of(record)
    bench = setup.workbench(
        settings, folder.task_of(record), record["model"]["revision"]
    )
    folder.check_weights(path, bench, record)
    state, frozen, alpha, step = loop.restore_chosen(bench, path, record["total_steps"])
    return fitted(
        path, bench, state.params, frozen, alpha, step, tuple(record["buckets"])
    )


def fitted(
    path: epath.Path,
    bench: Workbench,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    step: int,
    edges: tuple[int, ...],
) -> Fitted:
    """A model with the calibrator its folder holds, if any."""
    learned = validate.train_temperature(trainable)
    file = path / "calibrator.json"
    temperature = learned
    if file.exists():
        temperature = calibrators.from_json(file.read_text()).temperature
    forward = validate.forward(bench.model, bench.mesh)
    return Fitted(
        path,
        bench,
        forward,
        trainable,
        frozen,
        alpha,
        step,
        edges,
        temperature,
        learned,
    )


def tokenised(run: Fitted, table: Table) -> Dataset:
    """A table as the run's model reads it."""
    return dataset(table, run.bench.tokenizer, run.bench.settings.data.max_length)


def logits_of(run: Fitted, data: Dataset) -> np.ndarray:
    """Raw logits (N, Y) of a tokenised table."""
    return validate.split_logits(
        run.forward,
        run.trainable,
        run.frozen,
        run.alpha,
        data,
        run.edges,
        run.bench.settings.optim.batch_size,
    )


def fit_temperature(run: Fitted, logits_NY: np.ndarray, label_N: np.ndarray) -> Fitted:
    """The run with a temperature fitted on a split, written to its folder.

    A regression has no calibrator and comes back as it is.
    """
    if run.bench.task.kind == "regression":
        return run
    z, y = logits_NY, label_N
    keep = validate.labelled(y)
    state = calibrators.temperature().fit(z[keep], y[keep], np.ones(int(keep.sum())))
    store.write_whole(
        run.workdir / "calibrator.json", calibrators.to_json(state) + "\n"
    )
    return run._replace(temperature=state.temperature)


def evaluate(workdir: str, split: str = "validation") -> dict[str, Any]:
    """Metrics of a split; also written to DIR/eval/SPLIT.

    The keys are those of `calibration.metrics.compute_all` and the task's scores, for
    the probabilities that `predict` gives; `uncalibrated` holds them without the
    post-hoc temperature.

    Raises:
      UserError: no such run or split.
    """
    run = open_run(workdir)
    corpus = setup.load_corpus(run.bench.settings)
    table = corpus.splits[split]
    if corpus.task.labels != run.bench.task.labels:
        raise UserError(
            f"the data now has classes {corpus.task.labels}, the run was trained for "
            f"{run.bench.task.labels}; restore the data or train again"
        )
    data = tokenised(run, table)
    warn_of_cuts([data], run.bench.settings.data.max_length)
    return write_split(run, split, data, logits_of(run, data))


def write_split(
    run: Fitted, split: str, data: Dataset, logits_NY: np.ndarray
) -> dict[str, Any]:
    """Metrics of a split from its raw logits, and its files in DIR/eval/SPLIT."""
    task, out = run.bench.task, {"split": split, "step": run.step}
    out |= validate.judge(task, logits_NY, data.label, run.temperature)
    if task.kind == "classification":
        out["temperature"] = run.temperature
        raw = validate.judge(task, logits_NY, data.label, run.uncalibrated)
        out["uncalibrated"] = raw | {"temperature": run.uncalibrated}
    where = run.workdir / "eval" / split
    where.mkdir(parents=True, exist_ok=True)
    predictions.write_npz(where / "predictions.npz", logits_NY, data.label, data.ids)
    store.write_json(where / "metrics.json", out)
    _diagram(run, split, logits_NY, data.label)
    return out


def _diagram(
    run: Fitted, split: str, logits_NY: np.ndarray, label_N: np.ndarray
) -> None:
    """Reliability diagram as DIR/report/reliability_SPLIT.png, for classes."""
    state = calibrators.Temperature(run.temperature)
    panel = plots.panel_of_split(
        run.workdir.name, logits_NY, label_N, state, run.uncalibrated
    )
    if panel is not None:
        path = run.workdir / "report" / f"reliability_{split}.png"
        plots.save(plots.reliability([panel]), path)


def predict_lines(workdir: str, lines: Iterable[str]) -> Iterator[str]:
    """JSON lines with `label`, `confidence` and `probs` added (regression: `score`).

    Args:
      lines: objects with "text", and "text_b" where the run was trained on pairs.

    Raises:
      UserError: a line that is no such object, with its number; what came before it
        has been given.
    """
    run = open_run(workdir)
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
            yield from _answers(run, good)
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


def _answers(run: Fitted, rows: list[dict[str, Any]]) -> Iterator[str]:
    task = run.bench.task
    n = len(rows)
    text_b = [row["text_b"] for row in rows] if task.pair else None
    table = Table(
        np.arange(n), [row["text"] for row in rows], text_b, np.zeros(n, np.int32)
    )
    data = tokenised(run, table)
    logits_NY = logits_of(run, data).astype(np.float64)
    if task.kind == "regression":
        for row, score in zip(rows, logits_NY[:, 0], strict=True):
            yield json.dumps({**row, "score": float(score)})
        return
    probs_NY = calibrators.softmax(logits_NY, run.temperature)
    for row, probs_Y in zip(rows, probs_NY, strict=True):
        best = int(np.argmax(probs_Y))
        named = dict(zip(task.labels, map(float, probs_Y), strict=True))
        answer = {"label": task.labels[best], "confidence": float(probs_Y[best])}
        yield json.dumps({**row, **answer, "probs": named}, ensure_ascii=False)
