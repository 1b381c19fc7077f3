"""Evaluation adds up: batches and processes give what all examples at once give."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from hypelora_jax import objectives
from hypelora_jax.calibration.calibrators import softmax
from hypelora_jax.data.tasks import Task
from hypelora_jax.train import scoring

TASKS = {
    "classification": Task("t", "classification", ("a", "b", "c"), ("mcc",), False),
    "regression": Task("t", "regression", (), ("pearson",), False),
    "reconstruction": Task("t", "reconstruction", ("a", "b", "c"), ("mcc",), False),
}
HALF = functools.partial(softmax, temperature=2.0)


def examples(kind: str, n: int = 40):
    """Logits, labels (two of them missing) and shares of raters, for classes."""
    draw = np.random.default_rng(0)
    if not TASKS[kind].labels:
        label_N = draw.normal(size=n).astype(np.float32)
        label_N[[3, 17]] = np.nan
        return draw.normal(size=(n, 1)).astype(np.float32), label_N, None
    label_N = draw.integers(0, 3, n).astype(np.int32)
    label_N[[3, 17]] = -1
    logits_NY = draw.normal(size=(n, 3)).astype(np.float32)
    return logits_NY, label_N, draw.dirichlet(np.ones(3), n)


def judged(judge, rows, *parts):
    """The state of each part of the rows, updated one after the other."""
    state = judge.start()
    for part in parts:
        state = judge.update(state, *(None if x is None else x[part] for x in rows))
    return state


@pytest.mark.parametrize("kind", objectives.OBJECTIVES)
def test_batches_and_processes_add_up(kind):
    judge, rows = objectives.of(TASKS[kind]).judge, examples(kind)
    whole = judge.result(judged(judge, rows, slice(None)), HALF)
    batches = judged(judge, rows, slice(0, 13), slice(13, 14), slice(14, None))
    one, two = judged(judge, rows, slice(0, 20)), judged(judge, rows, slice(20, None))
    merged = judge.merge(judge.merge(judge.start(), one), two)
    for state in (batches, merged):
        assert judge.result(state, HALF) == whole
    assert whole["n"] == 38
    alone = judge.loss(merged, HALF)
    assert alone == pytest.approx(whole[objectives.of(TASKS[kind]).unit], rel=1e-12)


@pytest.mark.parametrize("kind", objectives.OBJECTIVES)
def test_without_labels_there_are_no_metrics(kind):
    judge, rows = objectives.of(TASKS[kind]).judge, examples(kind)
    assert judge.result(judge.start(), HALF) == {}
    unlabelled = judged(judge, rows, [3, 17])
    assert judge.result(unlabelled, HALF) == {}
    assert np.isnan([judge.loss(x, HALF) for x in (judge.start(), unlabelled)]).all()


@pytest.mark.parametrize("kind", objectives.OBJECTIVES)
def test_tasks_count_alike_whatever_their_sizes(kind):
    objective = objectives.of(TASKS[kind])
    logits_NY, label_N, _ = examples(kind)
    label_N[35:] = np.nan if label_N.dtype.kind == "f" else -1  # task 2 has no labels
    task_N = np.repeat([0, 1, 2], [25, 10, 5])
    data = SimpleNamespace(task=task_N, label=label_N)
    each = []
    for own in (slice(25), slice(25, 35)):
        rows = logits_NY[own], label_N[own], None
        state = judged(objective.judge, rows, slice(None))
        each.append(objective.judge.result(state, HALF)[objective.unit])
    found = scoring.task_mean(objective, logits_NY, data, 2.0)
    assert found == {f"task_{objective.unit}": pytest.approx(np.mean(each))}
    data.label = label_N[35:].repeat(8)
    assert scoring.task_mean(objective, logits_NY, data, 2.0) == {}


def test_the_probabilities_are_those_that_were_asked_for():
    judge, rows = (
        objectives.of(TASKS["classification"]).judge,
        examples("classification"),
    )
    state = judged(judge, rows, slice(None))
    assert judge.result(state, HALF)["nll"] != judge.result(state, softmax)["nll"]
    keep = rows[1] >= 0
    p_NY = HALF(rows[0][keep].astype(np.float64))
    nll = -np.mean(np.log(p_NY[np.arange(len(p_NY)), rows[1][keep]]))
    assert judge.result(state, HALF)["nll"] == pytest.approx(nll, rel=1e-12)
