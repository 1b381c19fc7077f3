"""The arrays that the tasks of a set give to batches, made once for a run.

Descriptions, label names and unlabelled sentences are embedded by a frozen encoder. The
vectors are saved with the run, so that its evaluation does not need the encoder.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from hypelora_jax import families, files, hyper
from hypelora_jax.config.adapter_sections import ConditionConfig, TasksConfig
from hypelora_jax.config.settings import Settings
from hypelora_jax.data import npz
from hypelora_jax.data.batches import Dataset
from hypelora_jax.data.layouts.task_batches import TaskArrays, TaskPlan
from hypelora_jax.data.tables import Corpus, Splits
from hypelora_jax.data.tasks import Task, TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.model import Model
from hypelora_jax.run.paths import Run
from hypelora_jax.train.conditioning import text_encoder

POOL = 256  # sentences of a task that training draws a set from
_FIELDS = tuple(name for name in TaskSet._fields if name != "adapters")


def described(settings: Settings, corpus: Corpus) -> Task:
    """Return the task of a set with the sizes that the model is built from.

    Raises:
      UserError: there is no such encoder.
    """
    if corpus.tasks is None:
        return corpus.task
    counts = tuple(map(len, corpus.tasks.labels))
    differ = counts if len({*counts}) > 1 else ()
    task = corpus.task._replace(tasks=len(counts), classes=differ)
    embedded, named = hyper.embeds(settings.condition), families.names(settings.head)
    if not embedded and not named:
        return task
    encoder = settings.condition.encoder
    width = text_encoder.width(encoder, settings.condition.sign)
    name_width = text_encoder.width(encoder)
    return task._replace(condition=width * embedded, label_width=name_width * named)


def arrays(settings: Settings, model: Model, corpus: Corpus) -> TaskArrays | None:
    """Make the arrays of a corpus' tasks; None if it has no set of tasks.

    They are what the conditioner and the head of the model read.

    Raises:
      UserError: a task has too few sentences, or there is no such encoder.
    """
    tasks, parts = corpus.tasks, model.parts
    if tasks is None:
        return None
    reads = () if parts.cond is None else tuple(parts.cond.reads)
    conditions, choices, rows = {}, {}, {}
    encoder = settings.condition.encoder
    if "which" in reads:
        conditions["which"] = np.arange(len(tasks.names), dtype=np.int32)
    if "condition" in reads:
        text_encoder.warn_of_equal(encoder, tasks.descriptions)
        choices["condition"] = of_descriptions(settings.condition, tasks.descriptions)
        means = [x.mean(axis=0) for x in choices["condition"]]
        conditions["condition"] = np.stack(means)
    if "sentences" in reads:
        size = settings.condition.sentences
        found = _sentences(tasks, corpus.splits, size)
        choices["sentences"] = _each(encoder, found)
        conditions["sentences"] = np.stack([x[:size] for x in choices["sentences"]])
    if "labels" in parts.head.reads:
        rows["labels"] = label_vectors(encoder, tasks.labels)
    return TaskArrays(conditions, choices, rows, single="pooled" in reads)


def label_vectors(encoder: str, labels: Sequence[Sequence[str]]) -> np.ndarray:
    """Embed the label names of K tasks: (K, Y, E), zeros beyond a task's classes."""
    found = _each(encoder, labels)
    out = np.zeros((len(labels), max(map(len, labels)), found[0].shape[1]), np.float32)
    for k, x in enumerate(found):
        out[k, : len(x)] = x
    return out


def of_descriptions(
    config: ConditionConfig, texts: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Embed several lists of descriptions as the run reads them: (n, C) each."""
    return _each(config.encoder, texts, config.sign)


def _each(
    encoder: str, texts: Sequence[Sequence[str]], layers: int = 0
) -> list[np.ndarray]:
    """Embed several lists of texts, each text once: (n, C) for each list."""
    flat = [text for some in texts for text in some]
    once = {text: i for i, text in enumerate(dict.fromkeys(flat))}
    vectors = text_encoder.embed(encoder, list(once), layers)
    return [vectors[[once[text] for text in some]] for some in texts]


def _sentences(tasks: TaskSet, splits: Splits, size: int) -> list[list[str]]:
    """Return unlabelled sentences of each task, from the first split that has it.

    These are sentences of train, or of `held_out_validation` if it does not train.
    """
    out = []
    for k, name in enumerate(tasks.names):
        split = "held_out_validation" if tasks.held_out[k] else "train"
        table = splits[split]
        assert table.task is not None  # the splits of a set have it
        at = np.flatnonzero(table.task == k)
        at = np.random.default_rng([k, len(at)]).permutation(at)[:POOL]
        if len(at) < size:
            raise UserError(
                f"the task {name} has {len(at)} sentences in {split}; expected "
                f"{size} or more (config.condition.sentences)"
            )
        out.append([table.text[i] for i in at])
    return out


def shuffled(found: TaskArrays, tasks: TaskSet, seed: int) -> TaskArrays:
    """Return the arrays with the conditions of training tasks exchanged.

    Each task has the condition of another one, chosen by seed; a single one keeps its.
    """
    trained = np.flatnonzero(~np.asarray(tasks.held_out))
    order = np.random.default_rng([seed, len(trained)]).permutation(trained)
    source = np.arange(len(tasks.names))
    source[order] = np.roll(order, 1)
    conditions = {n: x[source] for n, x in found.conditions.items()}
    return found._replace(conditions=conditions)


# Where a conditioner keeps mean and deviation of what it reads, by the batch entry.
_STANDARD = {"condition": "cond/standard", "sentences": "cond/set/standard"}


def moments(
    found: TaskArrays, tasks: TaskSet
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return mean and deviation (C,) over what training draws from, in float64.

    The key is the path of the frozen leaves that they belong to.
    """
    out = {}
    for name, choices in found.choices.items():
        each = zip(choices, tasks.held_out, strict=True)
        x_NC = np.concatenate([x for x, held in each if not held]).astype(np.float64)
        mean_C, std_C = x_NC.mean(axis=0), x_NC.std(axis=0)
        std_C = np.where(std_C > 1e-6 * np.abs(mean_C), std_C, 1)
        out[_STANDARD[name]] = (mean_C, std_C)
    return out


def plan(
    settings: Settings, tasks: TaskSet, train: Dataset, edges: tuple[int, ...]
) -> TaskPlan:
    """Return the steps of a run that trains a set of tasks.

    Raises:
      UserError: the settings do not fit together, or a task has too few examples.
    """
    config = _step(settings, len(tasks.names) - sum(tasks.held_out))
    if settings.data.packing:
        raise UserError(
            "config.data.packing joins texts of several tasks in a row, but each row "
            "of a set of tasks has one adapter; expected data.packing=false"
        )
    assert train.task is not None  # the splits of a set have it
    about = (tasks.weights, config, tasks.names)
    return TaskPlan(train.task, train.label, train.lengths, edges, *about)


def _step(settings: Settings, trained: int) -> TasksConfig:
    """Return the section with the tasks and rows of a step, as many as there are.

    Raises:
      UserError: the rows do not divide optim.batch_size.
    """
    config, size = settings.tasks, settings.optim.batch_size
    most = min(config.per_batch, trained, size)
    if config.rows == 0:
        most = max(n for n in range(1, most + 1) if size % n == 0)
        config = dataclasses.replace(config, rows=size // most)
    if most * config.rows != size:
        raise UserError(
            f"config.tasks.rows is {config.rows} and a step has {most} tasks, but "
            f"optim.batch_size is {size}; expected their product, or tasks.rows=0"
        )
    logging.info("a step has %d tasks with %d rows of each", most, config.rows)
    return dataclasses.replace(config, per_batch=most)


EPOCHS = 3.0  # that buckets are chosen for if the data are not a set of tasks


def epochs(settings: Settings, tasks: TaskSet | None, examples: int) -> float:
    """Return the epochs that buckets are chosen for; in a set, those of the run."""
    optim, steps = settings.optim, settings.tasks.steps
    if tasks is None:
        return EPOCHS
    if not steps:
        return float(optim.num_epochs)
    return optim.num_epochs * steps * optim.batch_size / max(examples, 1)


def sha256(tasks: TaskSet) -> str:
    """Return the SHA-256 of all that a set says about its tasks, in hex."""
    return hashlib.sha256(files.to_json(_fields(tasks)).encode()).hexdigest()


def _fields(tasks: TaskSet) -> dict[str, Any]:
    """Return what is written of a set; one without adapters as before they existed."""
    fields = tasks._asdict()
    return fields if tasks.adapters else {n: fields[n] for n in _FIELDS}


def write(run: Run, tasks: TaskSet, found: TaskArrays) -> None:
    """Write tasks.json and conditions.npz, from which a trained run is evaluated."""
    files.write_json(run.tasks_file, _fields(tasks))
    arrays = {f"condition.{n}": x for n, x in found.conditions.items()}
    arrays |= {f"row.{n}": x for n, x in found.rows.items()}
    if "condition" in found.choices:  # the vectors of all descriptions, task by task
        arrays["descriptions"] = np.concatenate(found.choices["condition"])
    npz.write(run.conditions_file, {"single": np.asarray(found.single), **arrays})


def read(run: Run) -> tuple[TaskSet, TaskArrays] | None:
    """Read what `write` wrote; None if the run has no set of tasks.

    Raises:
      UserError: a file is missing or damaged.
    """
    if not run.tasks_file.exists():
        return None
    fields = files.read_json(run.tasks_file)
    complete = {*_FIELDS} <= fields.keys() <= {*TaskSet._fields}
    if not complete or not run.conditions_file.exists():
        raise UserError(
            f"{run.tasks_file} does not describe the tasks of the run, or "
            f"{run.conditions_file.name} is missing; restore both files"
        )
    tasks = TaskSet(
        tuple(fields["names"]),
        tuple(map(tuple, fields["descriptions"])),
        tuple(map(tuple, fields["labels"])),
        tuple(fields["held_out"]),
        tuple(fields["weights"]),
        tuple(map(tuple, fields["paraphrases"])),
        tuple(map(tuple, fields["negations"])),
        tuple(fields.get("adapters", ())),
    )
    arrays = npz.read(run.conditions_file)
    choices = {}
    if "descriptions" in arrays:
        ends = np.cumsum([len(x) for x in tasks.descriptions])
        choices["condition"] = np.split(arrays["descriptions"], ends[:-1])

    def named(start: str) -> dict[str, np.ndarray]:
        return {n[len(start) :]: x for n, x in arrays.items() if n.startswith(start)}

    single = bool(arrays.get("single", False))
    found = TaskArrays(named("condition."), choices, named("row."), single)
    for name, x in {**found.conditions, **found.rows}.items():
        if len(x) != len(tasks.names):
            raise UserError(
                f"{run.conditions_file} has {name} of {len(x)} tasks, but "
                f"{run.tasks_file.name} has {len(tasks.names)}; restore both files"
            )
    return tasks, found
