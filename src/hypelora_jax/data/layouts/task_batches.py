"""What the tasks of a set give to batches, and the batches of a step: tasks and rows.

A step reads some tasks and as many rows of each. Its batch has U conditions, one for
each task, and its rows are U groups in the order of the conditions. In evaluation the
rows come in any order and have the index of their condition.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hypelora_jax.config.adapter_sections import TasksConfig
from hypelora_jax.errors import UserError

Entries = dict[str, np.ndarray]


class TaskArrays(NamedTuple):
    """What each of K tasks gives to batches, by the key of the batch entry.

    `conditions` (K, ...) are what evaluation reads of each condition, and `choices` are
    what training draws from in their place: for each task (n, ...), of which it takes
    one, or as many as `conditions` has, anew in every step. `rows` (K, ...) go to each
    row of a task. With `single`, every row has a condition of its own.
    """

    conditions: Entries
    choices: Mapping[str, Sequence[np.ndarray]] = {}
    rows: Entries = {}
    single: bool = False


def of_batch(arrays: TaskArrays, task_B: np.ndarray, batch_size: int) -> Entries:
    """Return the entries of a batch whose rows belong to these tasks, in any order.

    If there are at most as many tasks as rows, the batch has the conditions of all of
    them and the index `row`; otherwise each row has its own condition. Its shapes do
    not depend on the rows, so the program is compiled once.
    """
    out = {**_rows(arrays, task_B)}
    if not arrays.conditions:
        return out
    several = next(iter(arrays.conditions.values()))
    if len(several) <= batch_size and not arrays.single:
        return {**out, **arrays.conditions, "row": task_B.astype(np.int32)}
    return {**out, **{n: x[task_B] for n, x in arrays.conditions.items()}}


class Group(NamedTuple):
    """A step: U groups of rows of a dataset, (U n,), in the order of U tasks.

    `length` is the number of tokens T, and `draw` the seed of what is drawn for it.
    """

    rows: np.ndarray
    length: int
    tasks: np.ndarray
    draw: tuple[int, ...]


def of_group(arrays: TaskArrays, group: Group, own: np.ndarray | None) -> Entries:
    """Return the entries of a step's batch; `own` are this process's rows.

    Each condition is drawn anew from the choices of its task.
    """
    rng = np.random.default_rng(group.draw)
    drawn = {n: _drawn(arrays, n, group.tasks, rng) for n in sorted(arrays.conditions)}
    size = len(group.rows) // len(group.tasks)
    task_B = np.repeat(group.tasks, size)
    if arrays.single:
        drawn = {n: np.repeat(x, size, axis=0) for n, x in drawn.items()}
    if own is not None:
        task_B = task_B[own]
        if arrays.single:
            drawn = {n: x[own] for n, x in drawn.items()}
    return {**_rows(arrays, task_B), **drawn}


def _rows(arrays: TaskArrays, task_B: np.ndarray) -> Entries:
    own = {n: x[task_B] for n, x in arrays.rows.items()}
    return {"task": task_B.astype(np.int32), **own}


def _drawn(
    arrays: TaskArrays, name: str, tasks: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the entries (U, ...) of some tasks; one of the choices of each, or k."""
    fixed = arrays.conditions[name]
    if name not in arrays.choices:
        return fixed[tasks]
    out = []
    for task in tasks:
        choices = arrays.choices[name][task]
        if choices.ndim < fixed.ndim:  # as many of them as evaluation reads
            several = rng.choice(len(choices), len(fixed[task]), replace=False)
            out.append(choices[np.sort(several)])
        else:
            out.append(choices[rng.integers(len(choices))])
    return np.stack(out)


class Stratum(NamedTuple):
    """Examples of a task, or of one class of it: shortest bucket first.

    `fit` is how many of them fit each bucket.
    """

    rows: np.ndarray
    fit: np.ndarray

    def draw(self, rng: np.random.Generator, bucket: int, size: int) -> np.ndarray:
        """Draw rows of a bucket, and of shorter ones if it has few."""
        end = int(self.fit[bucket])
        start = int(self.fit[bucket - 1]) if bucket else 0
        start = min(start, end - size)
        return self.rows[start + rng.choice(end - start, size, replace=False)]


def _strata(
    rows: np.ndarray, label_N: np.ndarray, bucket_N: np.ndarray, buckets: int
) -> list[Stratum]:
    """Split the rows of a task by label."""
    out = []
    for label in np.unique(label_N[rows]):
        own = rows[label_N[rows] == label]
        own = own[np.argsort(bucket_N[own], kind="stable")]
        fit = np.searchsorted(bucket_N[own], np.arange(buckets), side="right")
        out.append(Stratum(own, fit))
    return out


class TaskPlan:
    """The steps of all epochs: step i of an epoch is fixed by the seed and its epoch.

    All rows of a step are in one bucket or in shorter ones. The bucket is drawn by the
    number of examples, the tasks by `config.sampling` without repetition, and the rows
    of a task without repetition. With `config.balanced` a task gives as many rows of
    each of its classes, or one more of some.

    Args:
      task_N: the task of each example.
      label_N: the class of each example.
      lengths: the number of tokens of each example.
      edges: lengths T of the buckets.
      weights: the weight of each task of the set.
      config: tasks and rows of a step, and how tasks are drawn.
      names: names of the tasks, for messages.

    Raises:
      UserError: there are fewer tasks than a step takes, or a task has too few rows.
    """

    def __init__(
        self,
        task_N: np.ndarray,
        label_N: np.ndarray,
        lengths: np.ndarray,
        edges: tuple[int, ...],
        weights: Sequence[float],
        config: TasksConfig,
        names: Sequence[str],
    ):
        self._edges, self._config = edges, config
        tasks, counts = np.unique(task_N, return_counts=True)
        bucket_N = np.searchsorted(edges, lengths)
        strata = label_N if config.balanced else np.zeros_like(task_N)
        by_task = np.split(np.argsort(task_N, kind="stable"), np.cumsum(counts)[:-1])
        self._strata = [_strata(x, strata, bucket_N, len(edges)) for x in by_task]
        # how many rows of a task fit each edge, with equally many of each stratum
        self._fit = np.stack(
            [len(own) * np.min([s.fit for s in own], axis=0) for own in self._strata]
        )
        _check(tasks, self._fit[:, -1], config, names)
        share = np.bincount(bucket_N, minlength=len(edges)) / len(task_N)
        full = np.sum(self._fit >= config.rows, axis=0) >= config.per_batch
        # a bucket that too few tasks fill is read with the next one that enough fill
        self._share = np.zeros(len(edges))
        for b, x in enumerate(share):
            self._share[b + int(np.argmax(full[b:]))] += x
        self._tasks = tasks
        self._weight = _weights(tasks, counts, np.asarray(weights, float), config)
        self._steps = config.steps or max(
            1, len(task_N) // (config.per_batch * config.rows)
        )

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return self._steps

    def lengths(self) -> list[int]:
        """Return the lengths T that steps may have."""
        return [e for e, x in zip(self._edges, self._share, strict=True) if x > 0]

    def epoch(self, seed: int, epoch: int) -> list[Group]:
        """Return the steps of an epoch."""
        rng = np.random.default_rng([seed, epoch])
        buckets = rng.choice(len(self._edges), self._steps, p=self._share)
        return [self._group(rng, b, (seed, epoch, i)) for i, b in enumerate(buckets)]

    def _group(
        self, rng: np.random.Generator, bucket: int, draw: tuple[int, ...]
    ) -> Group:
        own = self._fit[:, bucket]
        weight = self._weight * (own >= self._config.rows)
        p = weight / weight.sum()
        at = rng.choice(len(p), self._config.per_batch, replace=False, p=p)
        rows = [self._rows(rng, k, bucket) for k in at]
        return Group(np.concatenate(rows), self._edges[bucket], self._tasks[at], draw)

    def _rows(self, rng: np.random.Generator, k: int, bucket: int) -> np.ndarray:
        own = self._strata[k]
        sizes = np.full(len(own), self._config.rows // len(own))
        more = self._config.rows % len(own)
        sizes[rng.permutation(len(own))[:more]] += 1
        drawn = [s.draw(rng, bucket, n) for s, n in zip(own, sizes, strict=True)]
        return np.concatenate(drawn)


def _weights(
    tasks: np.ndarray, counts: np.ndarray, given: np.ndarray, config: TasksConfig
) -> np.ndarray:
    if config.sampling == "uniform":
        return np.ones(len(tasks))
    if config.sampling == "weight":
        return given[tasks]
    return counts.astype(float) ** config.power


def _check(
    tasks: np.ndarray, fit: np.ndarray, config: TasksConfig, names: Sequence[str]
) -> None:
    if len(tasks) < config.per_batch:
        raise UserError(
            f"config.tasks.per_batch is {config.per_batch}, but the set has "
            f"{len(tasks)} tasks of role train; expected at most that many"
        )
    least = int(np.argmin(fit))
    if fit[least] < config.rows:
        each = " with equally many of each class" if config.balanced else ""
        raise UserError(
            f"the task {names[int(tasks[least])]} has {fit[least]} examples in "
            f"train{each}, but config.tasks.rows is {config.rows}; give it more, or "
            "set tasks.rows to that"
        )
