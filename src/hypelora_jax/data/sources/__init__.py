"""Sources: corpora by name, with a calibration split held out of train.

A source reads files or packages and returns a task and tables of texts and labels.
Tokens and batches are made from the texts elsewhere in `data`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
from absl import logging

from hypelora_jax.config.adapter_sections import ConditionConfig, TasksConfig
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.data import conditions, formats
from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.formats import ReadSheet, documents
from hypelora_jax.data.sources import (
    glue,
    movie_reviews,
    synthetic,
    task_files,
    unions,
    user_files,
)
from hypelora_jax.data.sources.task_fields import TaskEntry, within
from hypelora_jax.data.tables import (
    Corpus,
    Splits,
    calibration_size,
    hold_out,
    take,
    with_classes,
)
from hypelora_jax.data.tasks import Task, glue_task
from hypelora_jax.errors import UserError, choose

Read = tuple[Task, Splits]
FIELD = "data.source"


def load(
    config: DataConfig,
    seed: int,
    condition: ConditionConfig | None = None,
    tasks: TasksConfig | None = None,
) -> Corpus:
    """Load the corpus that a config names.

    If the source has no calibration split and no `data.calibration` file is given, one
    is held out of train. It is a stratified draw, fixed by seed and ids. Its size is
    `calibration_fraction` of train, limited to 100 to 2,000 examples and at most half.
    `max_examples` then cuts train. `data.classes` gives the classes their ids. In a set
    of tasks, all this is done to each task. `condition` says which vectors the examples
    are conditioned on, if any, and `tasks` has the file of a set of tasks.

    Raises:
      UserError: the data is missing or bad, or cannot be downloaded.
    """
    entries, vectors = _entries(config, tasks), None
    if condition is not None and (config.condition or condition.file):
        vectors = Vectors(condition)
    if entries is None:
        corpus = _load(config, seed, vectors, formats.read)
    else:
        if vectors is not None and config.condition:
            _no_columns(config)
        read = formats.read_once(_repeated(entries))
        corpus = unions.union(entries, lambda own: _load(own, seed, None, read))
    task, splits, _ = corpus
    if vectors is not None and condition is not None:
        if not config.condition:
            splits = conditions.by_example_id(splits, vectors, condition)
        first = next(iter(splits.values()))
        task = task._replace(condition=conditions.width_of(first))
    sizes = ", ".join(f"{name} {len(t.ids)}" for name, t in splits.items())
    logging.info("data %s/%s: %s", config.source, task.name, sizes)
    return corpus._replace(task=task, splits=splits)


def _load(
    config: DataConfig, seed: int, vectors: Vectors | None, read: ReadSheet
) -> Corpus:
    """Load one task; `read` reads the sheets of the user's own files."""
    source = choose(SOURCES, config.source, FIELD)
    column = vectors if config.condition else None
    if source.of_files is not None:
        task, splits = source.of_files(config, seed, column, read)
    elif column is None:
        task, splits = source.load(config, seed)
    else:
        _no_columns(config)
    if config.classes and task.labels != config.classes:
        task, splits, _ = with_classes(Corpus(task, splits), config.classes)
    if "train" in splits and "calibration" not in splits:
        n = len(splits["train"].ids)
        size = calibration_size(n, config.calibration_fraction)
        kept, calibration = hold_out(splits["train"], size, seed, salt=0)
        others = {name: table for name, table in splits.items() if name != "train"}
        splits = Splits({"train": kept, "calibration": calibration, **others})
    if config.max_examples and "train" in splits:
        rows = np.arange(min(config.max_examples, len(splits["train"].ids)))
        splits["train"] = take(splits["train"], rows)
    return Corpus(task, splits)


def _no_columns(config: DataConfig) -> NoReturn:
    raise UserError(
        f"config.data.condition={config.condition} names a column, but "
        f"data.source={config.source} has no columns of yours; expected "
        "data.source=files, or vectors by the ids of examples in condition.file"
    )


def _entries(config: DataConfig, tasks: TasksConfig | None) -> list[TaskEntry] | None:
    """Return the tasks of a set, or None if the source is that of one task."""
    file = "" if tasks is None else tasks.file
    if choose(SOURCES, config.source, FIELD) is not _SET:
        if file:
            raise UserError(
                f"config.tasks.file is {file!r}, but config.data.source is "
                f"{config.source!r}, which does not read it; expected "
                "data.source=tasks, or no tasks.file"
            )
        return None
    if not file:
        raise UserError(
            "config.tasks.file is empty; expected a file of tasks with "
            f"data.source=tasks ({', '.join(documents.SUFFIXES)}). Set "
            "config.tasks.file=FILE"
        )
    return task_files.read(file, config)


def _repeated(entries: Sequence[TaskEntry]) -> set[str]:
    """Return the files that are read more than once."""
    paths = ("train", "calibration", "validation", "test")
    configs = {entry.data for entry in entries}
    count = Counter(getattr(config, name) for config in configs for name in paths)
    return {path for path, n in count.items() if path and n > 1}


def prepare(config: DataConfig, tasks: TasksConfig | None = None) -> str:
    """Download and prepare what a source needs, as `load` does; return where it is.

    Raises:
      UserError: a download fails, or it is forbidden, or a set of tasks is wrong.
    """
    entries = _entries(config, tasks)
    if entries is None:
        return choose(SOURCES, config.source, FIELD).prepare(config)
    found = dict[str, None]()
    for entry in {entry.data: entry for entry in entries}.values():
        try:
            found[choose(SOURCES, entry.data.source, FIELD).prepare(entry.data)] = None
        except UserError as e:
            raise within(entry.where, e) from e
    return "; ".join(found)


def _load_tfds(config: DataConfig, seed: int) -> Read:
    del seed
    return glue_task(config.task).task, glue.load_tfds(config)


def _prepare_tfds(config: DataConfig) -> str:
    return f"tfds glue/{config.task} in {glue.prepare_tfds(config).data_path}"


def _load_glue_dir(config: DataConfig, seed: int) -> Read:
    del seed
    return glue_task(config.task).task, glue.load_dir(config)


def _prepare_movie_reviews(config: DataConfig) -> str:
    del config
    return f"movie_reviews in {movie_reviews.prepare()}"


def _nested(config: DataConfig, seed: int = 0) -> NoReturn:
    raise UserError(
        f"config.data.source is {config.source!r} for a task of a set; expected the "
        "source of one task"
    )


def _nothing(config: DataConfig) -> str:
    return f"{config.source}: nothing to prepare"


class Source(NamedTuple):
    """How a source is read, and how it is prepared ahead of a job.

    `load` prepares what is not prepared yet, by the same function as `prepare`.
    `of_files` also reads the column of vectors that `data.condition` names, and takes
    the function that reads sheets. It is None for sources other than the user's files.
    """

    load: Callable[[DataConfig, int], Read]  # config, seed
    prepare: Callable[[DataConfig], str] = _nothing  # returns where it is
    of_files: Callable[[DataConfig, int, Vectors | None, ReadSheet], Read] | None = None


_SET = Source(_nested, _nested)  # several tasks, which have sources of their own
SOURCES = {
    "tfds": Source(_load_tfds, _prepare_tfds),
    "glue_dir": Source(_load_glue_dir),
    "files": Source(user_files.load, of_files=user_files.load),
    "movie_reviews": Source(movie_reviews.load, _prepare_movie_reviews),
    "synthetic": Source(synthetic.load),
    "tasks": _SET,
}
