"""The run folder that an import makes: its data, its parameters, and step 0."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import families, files, trees
from hypelora_jax.calibration import calibrators
from hypelora_jax.calibration.metrics.scores import SCORES
from hypelora_jax.config import settings as settings_lib
from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tables import Corpus
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.exchange import classifier_labels
from hypelora_jax.exchange.export_record import RECORD
from hypelora_jax.interop import base as bases
from hypelora_jax.objectives import OBJECTIVES
from hypelora_jax.run import calibrator
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import rules
from hypelora_jax.train import loop
from hypelora_jax.train.session import Session, load_corpus, record_of, with_data
from hypelora_jax.types import Params

_EDGES = (16, 32, 64, 128, 256)  # bucket lengths of a run without data
# Sections of a config that an import takes as they are.
KEPT = ("seed", "seed_scope", "select_on", "data", "optim", "mesh", "ckpt", "log")


class Note(NamedTuple):
    """What our export recorded of its run."""

    settings: Settings
    task: Task
    calibrator: Any  # its state; None if there is none, or the head is divided by it


def _are_scores(names: Any) -> bool:
    return isinstance(names, list) and all(str(name) in SCORES for name in names)


def note_of(folder: epath.Path) -> Note | None:
    """Return the record of an export, or None if another program wrote the folder.

    Raises:
      UserError: the record is damaged; the message names file and field.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    way_out = "Export the run again, or delete the file"
    fields = JsonFields(str(path), files.read_json(path, way_out), way_out)
    task, known = fields.object("task"), f"one of {', '.join(OBJECTIVES)}"
    scores = f"a list with some of {', '.join(SCORES)}"
    try:
        settings = settings_lib.from_dict(dict(fields.object("config").values))
        fitted = fields.object("calibrator", {}).values
        state = calibrators.from_json(files.to_json(fitted)) if fitted else None
    except UserError as e:
        told = str(e) if str(e).startswith(str(path)) else f"{path}: {e}"
        raise UserError(told) from e
    return Note(
        settings,
        Task(
            name=task.text("name"),
            kind=task.read("kind", lambda x: str(x) in OBJECTIVES, known),
            labels=task.texts("labels"),
            metrics=tuple(task.read("metrics", _are_scores, scores)),
            pair=task.flag("pair"),
            condition=task.integer("condition", 0, 0),
        ),
        state,
    )


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


def with_classes(
    settings: Settings, corpus: Corpus | None, labels: tuple[str, ...]
) -> tuple[Settings, Corpus | None]:
    """Give the classes of the data the order of the classifier's outputs.

    Raises:
      UserError: the data has other labels, or numbers instead of classes.
    """
    if corpus is None:
        return settings, None
    found = corpus.task.labels
    classifier_labels.check_kind(labels, found)
    if not labels:
        return settings, corpus
    classes = classifier_labels.of_data(labels, found)
    if classes == found:
        return settings, corpus
    logging.info("classes in the order of the model: %s", ", ".join(classes))
    # read the data again, as a later command reads it with these settings
    data = dataclasses.replace(settings.data, classes=classes)
    settings = dataclasses.replace(settings, data=data)
    return settings, corpus_of(settings, asked=True)


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
        if delta.shape != kernel.shape:
            raise UserError(
                f"the adapter's factors of the head's {part} are for a kernel "
                f"{delta.shape}; the model has {kernel.shape}: give the base model it "
                "was trained on as --model"
            )
        flat[f"head/{part}/kernel"] = (kernel + delta).astype(np.float32)
    params = trees.unflatten(flat)
    where = rules.shardings(
        params, session.mesh, families.of(session.base.config).shardings
    )
    params = rules.place(params, where)
    trainable, frozen = session.model.split(params)
    return session._replace(trainable=trainable, frozen=frozen)


def begin(session: Session, corpus: Corpus | None, run: Run, note: Note | None) -> None:
    """Write the record, the parameters as step 0, and the calibrator of an export.

    A calibrated export records no calibrator, because its head is already divided.
    """
    if corpus is not None:
        session = with_data(session, corpus)
    elif not session.edges:  # default buckets
        longest = session.settings.data.max_length
        edges = (*(e for e in _EDGES if e < longest), longest)
        session = session._replace(edges=edges)
    files.write_json(run.config_file, record_of(session))
    loop.begin(session, run)
    if note is not None and note.calibrator is not None:
        calibrator.write(run, note.calibrator)
