"""Audits a run: answers the rows of a split with every control, and compares them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from absl import logging

from hypelora_jax.calibration import calibrators
from hypelora_jax.data.batches import Dataset
from hypelora_jax.data.formats.cells import listed
from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.data.tables import Corpus, Table
from hypelora_jax.data.tables import take as take_rows
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.audit import (
    controls,
    delta_variance,
    description_only,
    paired,
)
from hypelora_jax.evaluate.audit.verdict import verdict
from hypelora_jax.evaluate.fitted import (
    Fitted,
    corpus_of,
    tokenised,
    with_conditions,
)
from hypelora_jax.train.conditioning import task_conditions

SPLITS = ("held_out_test", "held_out_validation", "test", "validation")
# What stands for junk in the verdict: the harder of the two to beat.
JUNK = ("nonsense", "random_vector")


def audit(
    workdir: str,
    split: str = "",
    static: str = "",
    oracles: Mapping[str, str] = {},  # noqa: B006 (only read)
    replicas: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Audit the condition of a run on the tasks of a split.

    Args:
      workdir: a trained run of a set of tasks, with a condition.
      split: the split; "" takes tasks that were not trained, if the set has some.
      static: a run of the same shape and tasks without a condition.
      oracles: runs that were trained on a single task of the set, by task.
      replicas: of the bootstrap.
      seed: of the draws.

    Returns:
      `split`, `tasks` (their names), `n`, `controls` ({name: metrics with intervals}),
      `margins` ({control: differences in metrics, control minus matched}), `outputs`
      (mean KL divergence of matched from shuffled answers), `verdict` and `line`. An
      oracle is compared on its own task, in `oracles`. `delta_variance` has the shares
      of the deltas of the audited and the training tasks that vary between them.

    Raises:
      UserError: the run has no condition, or another run does not fit.
    """
    fitted = evaluation.open_fitted(workdir)
    tasks, arrays = _conditions(fitted)
    corpus = corpus_of(fitted)
    split, table = audited(corpus, split)
    assert table.task is not None  # the splits of a set have it
    wanted = np.unique(table.task).tolist()
    embed = partial(task_conditions.of_descriptions, fitted.session.settings.condition)
    drawn = controls.draws(arrays, tasks, wanted, embed, seed)
    data, probs = tokenised(fitted, table), {}
    for name, some in drawn.items():
        logging.info("audit: %s", name)
        probs[name] = np.stack([answered(fitted, data, one) for one in some])
    probs |= without_text(fitted, corpus.splits["train"], table)
    if static:
        probs["static"] = _other(static, fitted, table)[None]
    found = compare(probs, table.label, table.task, replicas, seed)
    matched = paired.rows(probs["matched"], table.label)
    each = {
        name: _oracle(name, folder, fitted, table, matched, seed)
        for name, folder in oracles.items()
    }
    known = np.union1d(wanted, np.flatnonzero(~np.asarray(tasks.held_out)))
    return {
        "split": split,
        "tasks": [tasks.names[k] for k in wanted],
        "n": len(table.label),
        **found,
        "oracles": each,
        "delta_variance": delta_variance.of_tasks(fitted, known),
    }


def _conditions(fitted: Fitted) -> tuple[TaskSet, TaskArrays]:
    tasks, arrays = fitted.session.task_set, fitted.session.tasks
    if tasks is None or arrays is None or not arrays.conditions:
        raise UserError(
            f"{fitted.run.path} has no condition to audit; expected a run of a set of "
            "tasks (data.source=tasks) with condition.source=text, task or set"
        )
    return tasks, arrays


def compare(
    probs: Mapping[str, np.ndarray],
    label_N: np.ndarray,
    task_N: np.ndarray,
    replicas: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the answers of the controls with those of `matched`, and give a verdict.

    Args:
      probs: by control, (D, N, Y): D draws of its answers to the same rows.
      label_N: classes.
      task_N: the task of each row.
      replicas: of the bootstrap, at least 2.
      seed: of its draws.

    Returns:
      `controls`, `margins`, `outputs`, `verdict` and `line`, as `audit`.
    """
    weight_RN = paired.draws(task_N, replicas, seed)
    rows = {name: paired.rows(p, label_N) for name, p in probs.items()}
    margins = {
        name: paired.difference(one, rows["matched"], weight_RN)
        for name, one in rows.items()
        if name != "matched"
    }
    said, line = verdict(_losses(margins))
    return {
        "controls": {n: paired.metrics(one, weight_RN) for n, one in rows.items()},
        "margins": margins,
        "outputs": {"kl_shuffled": _divergence(probs["matched"], probs["shuffled"])},
        "verdict": said,
        "line": line,
    }


def audited(corpus: Corpus, split: str) -> tuple[str, Table]:
    """Return a split and its rows that have labels; "" takes the first that has any.

    Raises:
      UserError: no row of the split has a label, or there is no split to audit.
    """
    names = (split,) if split else [n for n in SPLITS if n in corpus.splits]
    if not names:
        raise UserError(
            f"the set of tasks has no split to audit; expected {listed(SPLITS)}"
        )
    for name in names:
        every = corpus.splits[name]
        table = take_rows(every, np.flatnonzero(every.label >= 0))
        if not len(table.label):
            continue
        assert corpus.tasks is not None  # and so tables have numbers of tasks
        assert every.task is not None and table.task is not None
        if left := np.setdiff1d(every.task, table.task).tolist():
            who = listed([corpus.tasks.names[k] for k in left])
            logging.warning("not audited, without labels in %s: %s", name, who)
        return name, table
    raise UserError(
        f"no example of {listed(names)} has a label; expected some in the split that "
        "is audited"
    )


def answered(
    fitted: Fitted, data: Dataset, conditions: dict[str, np.ndarray]
) -> np.ndarray:
    """Return calibrated probabilities (N, Y) with other conditions of the tasks."""
    own = with_conditions(data, conditions)
    logits_NY = fitted.answer(own).logits.astype(np.float64)
    return calibrators.apply(fitted.calibrator, logits_NY)


def without_text(fitted: Fitted, train: Table, table: Table) -> dict[str, np.ndarray]:
    """Return what is answered without the text: base rates, and by the description."""
    session, task_N, label_N = fitted.session, train.task, train.label
    assert session.tasks is not None and task_N is not None and table.task is not None
    classes = session.task.num_outputs
    pooled = description_only.shares(label_N, np.zeros_like(label_N), classes)
    out = {"base_rate": pooled[np.zeros(len(table.label), int)][None]}
    vectors = [x for x in session.tasks.conditions.values() if x.dtype.kind == "f"]
    if vectors:
        x_KC = np.concatenate([x.reshape(len(x), -1) for x in vectors], axis=1)
        share = description_only.shares(label_N, task_N, classes)
        told = description_only.fit_predict(x_KC[np.unique(task_N)], share, x_KC)
        out["description_only"] = told[table.task][None]
    return out


def _losses(margins: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the margins in loss that the verdict reads, with the nearer junk."""
    out = {name: one["nll"] for name, one in margins.items()}
    if junk := [out[name] for name in JUNK if name in out]:
        out["junk"] = min(junk, key=lambda one: one["low"])
    return out


def _divergence(matched_DNY: np.ndarray, other_DNY: np.ndarray) -> float:
    """Return the mean KL divergence, in nats, of the first answers from the others."""
    p, q = (np.maximum(x, 1e-12) for x in (matched_DNY, other_DNY))
    return float(np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=-1)))


def _other(workdir: str, fitted: Fitted, table: Table) -> np.ndarray:
    """Return the probabilities of another run on the same rows.

    Raises:
      UserError: it has other classes, or another set of tasks.
    """
    other = evaluation.open_fitted(workdir)
    tasks, own = fitted.session.task_set, other.session.task_set
    mine, theirs = fitted.session.task.labels, other.session.task.labels
    if mine != theirs:
        raise UserError(
            f"{workdir} has the classes {', '.join(theirs)}, but the audited run has "
            f"{', '.join(mine)}; expected a run of the same tasks"
        )
    if own is None:  # a run of one task
        table = table._replace(task=None)
    elif len(own.names) == 1:
        table = table._replace(task=np.zeros(len(table.label), int))
    elif tasks is None or own.names != tasks.names:
        raise UserError(
            f"{workdir} was trained on another set of tasks; expected the same "
            "tasks.file"
        )
    logits_NY = other.answer(tokenised(other, table)).logits.astype(np.float64)
    return calibrators.apply(other.calibrator, logits_NY)


def _oracle(
    name: str,
    workdir: str,
    fitted: Fitted,
    table: Table,
    matched: paired.Rows,
    seed: int,
) -> dict[str, Any]:
    """Compare a run of one task with the audited run, on the rows of that task."""
    tasks = fitted.session.task_set
    assert tasks is not None and table.task is not None
    at = np.flatnonzero(table.task == tasks.number(name))
    if not len(at):
        raise UserError(
            f"--oracle names the task {name}, which has no rows in the split; "
            "expected a task of the split"
        )
    own = take_rows(table, at)
    rows = paired.rows(_other(workdir, fitted, own), own.label)
    weight_RN = paired.draws(np.zeros(len(at)), seed=seed)
    mine = paired.Rows(*(x[at] for x in matched))
    found = {"oracle": paired.metrics(rows, weight_RN)}
    found["matched"] = paired.metrics(mine, weight_RN)
    found["margin"] = paired.difference(mine, rows, weight_RN)
    return found
