"""Corpora by the name of their source, with a calibration split held out of train."""

import os

import numpy as np
from absl import logging

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import glue, movie_reviews, synthetic, user_files
from hypelora_jax.data.tables import (
    Corpus,
    Splits,
    Table,
    calibration_size,
    hold_out,
    take,
)
from hypelora_jax.data.tasks import Task, glue_task

__all__ = ["Corpus", "Splits", "Table", "load", "prepare"]

CacheDir = str | os.PathLike | None


def load(config: DataConfig, seed: int, cache_dir: CacheDir = None) -> Corpus:
    """The corpus that a config names.

    Where the source has no calibration split (and no `data.calibration` file is given),
    one is held out of train: stratified, fixed by seed and ids, `calibration_fraction`
    of train within 100 to 2,000 examples but at most half. `max_examples` then cuts
    train.

    Raises:
      UserError: the data is missing or bad.
    """
    task, splits = _read(config, seed, cache_dir)
    if "train" in splits and "calibration" not in splits:
        n = len(splits["train"].ids)
        size = calibration_size(n, config.calibration_fraction)
        kept, held = hold_out(splits["train"], size, seed, salt=0)
        splits = Splits({"train": kept, "calibration": held, **_without_train(splits)})
    if config.max_examples and "train" in splits:
        rows = np.arange(min(config.max_examples, len(splits["train"].ids)))
        splits["train"] = take(splits["train"], rows)
    sizes = ", ".join(f"{name} {len(t.ids)}" for name, t in splits.items())
    source = f"{config.source}/{task.name}: {sizes}"
    logging.info("data %s", source)
    return Corpus(task, splits, source)


def _without_train(splits: Splits) -> dict[str, Table]:
    return {name: table for name, table in splits.items() if name != "train"}


def _read(config: DataConfig, seed: int, cache_dir: CacheDir) -> tuple[Task, Splits]:
    if config.source == "glue_dir":
        return glue_task(config.task).task, glue.load_dir(config)
    if config.source == "tfds":
        return glue_task(config.task).task, glue.load_tfds(config, cache_dir)
    if config.source == "files":
        return user_files.load(config, seed)
    if config.source == "movie_reviews":
        return movie_reviews.load(config, seed, cache_dir)
    return synthetic.load(config, seed)


def prepare(config: DataConfig, cache_dir: CacheDir = None) -> str:
    """Downloads and prepares what a source needs, ahead of a job; says what is where.

    Raises:
      UserError: a download fails.
    """
    if config.source == "tfds":
        return f"tfds glue/{config.task} in {glue.prepare_tfds(config, cache_dir)}"
    if config.source == "movie_reviews":
        return f"movie_reviews in {movie_reviews.prepare(cache_dir)}"
    return f"{config.source}: nothing to prepare"
