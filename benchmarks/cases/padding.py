"""Padding of the batches of an epoch: our buckets against batches of random rows.

A batch of 32 random rows is padded to its longest text. The numbers are shares of all
tokens of the epoch that are padding, rows that fill up a bucket's last batch included.
"""

import functools
from collections.abc import Iterator

import numpy as np

from benchmarks.case import Case, Options
from benchmarks.rows import Row, of_counts
from hypelora_jax.config.settings import from_dict
from hypelora_jax.data import buckets
from hypelora_jax.data.tasks import Task
from hypelora_jax.train.session import Session, load_corpus, open_session, with_data

BATCH, TASKS = 32, ("cola", "sst2", "mrpc")


def session(task: str, glue: str) -> Session:
    """The session of a run, with its buckets; the tokenizer is MiniLM's."""
    data = {"source": "glue_dir", "dir": glue, "task": task}
    optim = {"batch_size": BATCH}
    model = {"path": "minilm"}
    given = {"method": "head", "data": data, "optim": optim, "model": model}
    settings = from_dict(given)
    corpus = load_corpus(settings)
    made: Task = corpus.task
    return with_data(open_session(settings, made), corpus)


def bucketed(lengths: np.ndarray, edges: tuple[int, ...]) -> float:
    """Share of padding with buckets; every batch has all its rows."""
    plan = buckets.plan(lengths, edges, BATCH, seed=0)
    return float(1 - lengths.sum() / sum(BATCH * edge for _, edge in plan))


def random(lengths: np.ndarray) -> float:
    """Share of padding of batches of random rows."""
    order = np.random.default_rng(0).permutation(lengths)
    parts = np.split(order, range(BATCH, len(order), BATCH))
    return float(1 - lengths.sum() / sum(len(x) * x.max() for x in parts))


def measured(task: str, options: Options) -> Iterator[Row]:
    """Shares of padding of a task's training split, in percent."""
    made = session(task, options.glue)
    lengths = made.datasets["train"].lengths
    own, other = 100 * bucketed(lengths, made.edges), 100 * random(lengths)
    name, edges = f"padding/{task}", list(made.edges)
    yield of_counts(name, "random batches", own, other, "%", edges=edges)


CASES = {f"padding/{t}": Case(functools.partial(measured, t), "glue") for t in TASKS}
