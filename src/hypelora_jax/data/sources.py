"""Corpora by the name of their source, with a calibration split held out of train."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import glue, movie_reviews, synthetic, user_files
from hypelora_jax.data.tables import (
    Corpus,
    Splits,
    calibration_size,
    hold_out,
    take,
)
from hypelora_jax.data.tasks import Task, glue_task
from hypelora_jax.errors import choose

Read = tuple[Task, Splits]
FIELD = "data.source"


def load(config: DataConfig, seed: int) -> Corpus:
    """The corpus that a config names.

    Where the source has no calibration split (and no `data.calibration` file is given),
    one is held out of train: stratified, fixed by seed and ids, `calibration_fraction`
    of train within 100 to 2,000 examples but at most half. `max_examples` then cuts
    train.

    Raises:
      UserError: the data is missing or bad.
    """
    source = choose(SOURCES, config.source, FIELD)
    task, splits = source.load(config, seed)
    if "train" in splits and "calibration" not in splits:
        n = len(splits["train"].ids)
        size = calibration_size(n, config.calibration_fraction)
        kept, held = hold_out(splits["train"], size, seed, salt=0)
        others = {name: table for name, table in splits.items() if name != "train"}
        splits = Splits({"train": kept, "calibration": held, **others})
    if config.max_examples and "train" in splits:
        rows = np.arange(min(config.max_examples, len(splits["train"].ids)))
        splits["train"] = take(splits["train"], rows)
    sizes = ", ".join(f"{name} {len(t.ids)}" for name, t in splits.items())
    logging.info("data %s/%s: %s", config.source, task.name, sizes)
    return Corpus(task, splits)


def prepare(config: DataConfig) -> str:
    """Downloads and prepares what a source needs, ahead of a job; says what is where.

    Raises:
      UserError: a download fails.
    """
    return choose(SOURCES, config.source, FIELD).prepare(config)


def _load_tfds(config: DataConfig, seed: int) -> Read:
    del seed
    return glue_task(config.task).task, glue.load_tfds(config)


def _prepare_tfds(config: DataConfig) -> str:
    return f"tfds glue/{config.task} in {glue.prepare_tfds(config)}"


def _load_glue_dir(config: DataConfig, seed: int) -> Read:
    del seed
    return glue_task(config.task).task, glue.load_dir(config)


def _prepare_movie_reviews(config: DataConfig) -> str:
    del config
    return f"movie_reviews in {movie_reviews.prepare()}"


def _nothing(config: DataConfig) -> str:
    return f"{config.source}: nothing to prepare"


class Source(NamedTuple):
    """How a source is read, and what it does ahead of a job."""

    load: Callable[[DataConfig, int], Read]  # config, seed
    prepare: Callable[[DataConfig], str] = _nothing  # says what is where


SOURCES = {
    "tfds": Source(_load_tfds, _prepare_tfds),
    "glue_dir": Source(_load_glue_dir),
    "files": Source(user_files.load),
    "movie_reviews": Source(movie_reviews.load, _prepare_movie_reviews),
    "synthetic": Source(synthetic.load),
}
