"""Sources: corpora by name, with a calibration split held out of train.

A source reads files or packages and returns a task and tables of texts and labels.
Tokens and batches are made from the texts elsewhere in `data`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging

from hypelora_jax.config.adapter_sections import ConditionConfig
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.data import conditions
from hypelora_jax.data.conditions import Vectors
from hypelora_jax.data.sources import glue, movie_reviews, synthetic, user_files
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
    config: DataConfig, seed: int, condition: ConditionConfig | None = None
) -> Corpus:
    """Load the corpus that a config names.

    If the source has no calibration split and no `data.calibration` file is given, one
    is held out of train. It is a stratified draw, fixed by seed and ids. Its size is
    `calibration_fraction` of train, limited to 100 to 2,000 examples and at most half.
    `max_examples` then cuts train. `data.classes` gives the classes their ids.
    `condition` says which vectors the examples are conditioned on, if any.

    Raises:
      UserError: the data is missing or bad, or cannot be downloaded.
    """
    source = choose(SOURCES, config.source, FIELD)
    vectors = None
    if condition is not None and (config.condition or condition.file):
        vectors = Vectors(condition)
    if vectors is None or not config.condition:
        task, splits = source.load(config, seed)
    elif source.of_columns is not None:
        task, splits = source.of_columns(config, seed, vectors)
    else:
        raise UserError(
            f"config.data.condition={config.condition} names a column, but "
            f"data.source={config.source} has no columns of yours; expected "
            "data.source=files, or vectors by the ids of examples in condition.file"
        )
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
    if vectors is not None and condition is not None:
        if not config.condition:
            splits = conditions.by_example_id(splits, vectors, condition)
        first = next(iter(splits.values()))
        task = task._replace(condition=conditions.width_of(first))
    sizes = ", ".join(f"{name} {len(t.ids)}" for name, t in splits.items())
    logging.info("data %s/%s: %s", config.source, task.name, sizes)
    return Corpus(task, splits)


def prepare(config: DataConfig) -> str:
    """Download and prepare what a source needs, as `load` does; return where it is.

    Raises:
      UserError: a download fails, or it is forbidden.
    """
    return choose(SOURCES, config.source, FIELD).prepare(config)


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


def _nothing(config: DataConfig) -> str:
    return f"{config.source}: nothing to prepare"


class Source(NamedTuple):
    """How a source is read, and how it is prepared ahead of a job.

    `load` prepares what is not prepared yet, by the same function as `prepare`.
    `of_columns` also reads the column of vectors that `data.condition` names. It is
    None for sources whose columns the user does not name.
    """

    load: Callable[[DataConfig, int], Read]  # config, seed
    prepare: Callable[[DataConfig], str] = _nothing  # returns where it is
    of_columns: Callable[[DataConfig, int, Vectors], Read] | None = None


SOURCES = {
    "tfds": Source(_load_tfds, _prepare_tfds),
    "glue_dir": Source(_load_glue_dir),
    "files": Source(user_files.load, of_columns=user_files.load),
    "movie_reviews": Source(movie_reviews.load, _prepare_movie_reviews),
    "synthetic": Source(synthetic.load),
}
