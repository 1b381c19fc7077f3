"""The run folder that an import makes: its data, its parameters, and step 0."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import families, files, trees
from hypelora_jax.calibration import calibrators
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tables import Corpus
from hypelora_jax.errors import UserError
from hypelora_jax.exchange.export_record import RECORD
from hypelora_jax.interop import base as bases
from hypelora_jax.run import calibrator
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import rules
from hypelora_jax.train import loop
from hypelora_jax.train.session import Session, load_corpus, record_of, with_data
from hypelora_jax.types import Params

_EDGES = (16, 32, 64, 128, 256)  # bucket lengths of a run without data
# Sections of a config that an import takes as they are.
KEPT = ("seed", "seed_scope", "select_on", "data", "optim", "mesh", "ckpt", "log")


def note_of(folder: epath.Path) -> dict[str, Any] | None:
    """Return the record of an export, or None if another program wrote the folder."""
    path = folder / RECORD
    return files.read_json(path) if path.exists() else None


def model_path(base: bases.Base) -> str:
    """Return config.model.path of a base model."""
    return "minilm" if base.name == bases.MINILM and not base.revision else base.name


def corpus_of(settings: Settings, asked: bool) -> Corpus | None:
    """The data; None if the settings name no file, or recorded data is missing here."""
    if settings.data.source == "files" and not settings.data.train and not asked:
        return None
    try:
        return load_corpus(settings)
    except UserError as error:
        if asked:
            raise
        logging.warning("without data: %s", error)
        return None


def with_params(session: Session, own: Params) -> Session:
    """The session with imported parameters in place of the drawn ones.

    `head_deltas` in `own` are added to kernels of the head.
    """
    params = trees.union(session.trainable, session.frozen)
    flat, deltas = trees.flatten(params), own.pop("head_deltas", {})
    for path, x in trees.flatten(own).items():
        if path not in flat or flat[path].shape != x.shape:
            got = flat[path].shape if path in flat else "no such leaf"
            raise UserError(
                f"the adapter's {path} has shape {x.shape}; the model has {got}: give "
                "the base model it was trained on as --model"
            )
        flat[path] = np.asarray(x, np.float32)
    for part, delta in deltas.items():
        kernel = np.asarray(flat[f"head/{part}/kernel"], np.float64)
        flat[f"head/{part}/kernel"] = (kernel + delta).astype(np.float32)
    params = trees.unflatten(flat)
    where = rules.shardings(
        params, session.mesh, families.of(session.base.config).shardings
    )
    params = rules.place(params, where)
    trainable, frozen = session.model.split(params)
    return session._replace(trainable=trainable, frozen=frozen)


def begin(
    session: Session, corpus: Corpus | None, run: Run, note: Mapping[str, Any] | None
) -> None:
    """Write the record, the parameters as step 0, and the calibrator of an export.

    A calibrated export records no calibrator, because its head is already divided.
    """
    if corpus is not None:
        session = with_data(session, corpus)
    else:  # default buckets
        longest = session.settings.data.max_length
        edges = (*(e for e in _EDGES if e < longest), longest)
        session = session._replace(edges=edges)
    files.write_json(run.config_file, record_of(session))
    loop.begin(session, run)
    if fitted := note["calibrator"] if note else None:
        calibrator.write(run, calibrators.from_json(files.to_json(fitted)))
