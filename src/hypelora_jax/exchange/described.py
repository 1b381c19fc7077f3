"""A run folder of one adapter, which a hyper-network writes from a description."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hypelora_jax import files
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task, TaskSet
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.exchange import exports, imported_run
from hypelora_jax.exchange.imported_run import Note
from hypelora_jax.families.label_text_head import with_labels
from hypelora_jax.model import Compact
from hypelora_jax.run.paths import Run
from hypelora_jax.train.conditioning import task_conditions, text_encoder
from hypelora_jax.train.session import open_session
from hypelora_jax.types import Params

MAX_DESCRIPTION = 10_000  # characters, as in a set of tasks


class Nearest(NamedTuple):
    """The training task that is most like a description.

    `distance` is 1 minus the cosine to its nearest description, 0 to 2. Confidence has
    been measured near training descriptions; far from them it has not.
    """

    task: str
    distance: float


def adapt(
    workdir: str, output: str, description: str, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a run folder of the adapter that a run makes from a description.

    It is a run of the method `lora` at step 0, with the head and the calibrator of the
    run, so that `predict`, `evaluate`, `serve` and `export` take it like any other.

    Args:
      workdir: a run whose network reads descriptions.
      output: a folder that does not exist or is empty.
      description: what the new task asks, in words like those of training.
      labels: names of the classes; () takes those of the run. With
        head.kind=label_text they may be new ones.

    Returns:
      `output`, `description`, `labels`, `nearest` and `distance`, as in config.json.

    Raises:
      UserError: the run reads no descriptions, or the description or labels do not fit.
    """
    run = Run.create(output)
    files.check_empty(run.path, "--output", output)
    fitted = evaluation.open_fitted(workdir)
    tasks = _check(fitted, workdir, description)
    condition = fitted.session.settings.condition
    vector_C = text_encoder.embed(condition.encoder, [description.strip()])[0]
    names = _labels(fitted, labels)
    made = exports.adapters(fitted, {"described": vector_C})["described"]
    own = {
        "lora": _factors(fitted, made.compact),
        "head": _head(fitted, made.params["head"], names),
    }
    settings = _settings(fitted.session.settings)
    old = fitted.session.task
    task = Task("described", old.kind, names, old.metrics, old.pair)
    session = open_session(settings, task, fitted.session.base.revision or None)
    session = imported_run.with_params(session, own)
    imported_run.begin(session, None, run, Note(settings, task, fitted.calibrator))
    near = nearest(fitted, tasks, vector_C)
    about = {
        "description": description.strip(),
        "nearest": near.task,
        "distance": near.distance,
        "made_by": str(fitted.run.path),
    }
    record = files.read_json(run.config_file)
    files.write_json(run.config_file, record | {"described": about})
    return {"output": str(run.path), "labels": list(names), **about}


def _check(fitted: Fitted, workdir: str, description: str) -> TaskSet:
    session = fitted.session
    if session.task_set is None or session.model.reads != ("condition", "row"):
        raise UserError(
            f"{workdir} has condition.source={session.settings.condition.source}; "
            "expected a run of a set of tasks that reads descriptions and nothing "
            "else, with condition.source=text"
        )
    if not description.strip():
        raise UserError("the description is empty; expected what the task asks")
    if len(description) > MAX_DESCRIPTION:
        raise UserError(
            f"the description has {len(description):,} characters; expected at most "
            f"{MAX_DESCRIPTION:,}"
        )
    if session.settings.uncertainty.kind != "none":
        raise UserError(
            f"{workdir} averages over {session.settings.uncertainty.kind}, which one "
            "adapter does not; expected uncertainty.kind=none"
        )
    return session.task_set


def _labels(fitted: Fitted, labels: Sequence[str]) -> tuple[str, ...]:
    session, given = fitted.session, tuple(name.strip() for name in labels)
    own = session.task.labels
    if not given:
        return own
    if len(given) < 2 or len(set(given)) < len(given) or not all(given):
        raise UserError(
            f"the labels are {', '.join(given)}; expected two or more different names"
        )
    if "labels" not in session.model.parts.head.reads and set(given) != set(own):
        raise UserError(
            f"the labels are {', '.join(given)}, but the head of this run answers "
            f"{', '.join(own)}; expected those, or a run with head.kind=label_text"
        )
    return given if "labels" in session.model.parts.head.reads else own


def _factors(fitted: Fitted, compact: Compact) -> dict[str, dict[str, np.ndarray]]:
    """Return the compact factors of all adapted layers, whoever wrote them."""
    parts = fitted.session.model.parts
    placed = lora_lib.place(compact, parts.num_layers)
    layers: dict[str, set[int]] = {}
    for sites in (parts.hyper_sites, parts.lora_sites):
        for module, site in sites.items():
            layers.setdefault(module, set()).update(site.layers)
    return {
        module: {
            name: np.asarray(x[np.array(sorted(own))])
            for name, x in placed[module].items()
        }
        for module, own in layers.items()
    }


def _head(fitted: Fitted, head: Params, labels: Sequence[str]) -> Params:
    """Return a head with a last layer for the labels.

    That of `label_text` is linear in the text's state once the names are known.
    """
    session = fitted.session
    if "labels" not in session.model.parts.head.reads:
        if session.model.parts.head.reads:
            kind = session.settings.head.kind
            raise UserError(
                f"head.kind={kind} has a layer for each training task, and none for a "
                "new one; expected head.kind=classes or label_text"
            )
        return head
    encoder = session.settings.condition.encoder
    e_YE = task_conditions.label_vectors(encoder, [tuple(labels)])[0]
    return with_labels(head, jnp.asarray(e_YE), session.settings.head.width)


def _settings(old: Settings) -> Settings:
    """Return settings of a run with the same sites and static factors."""
    kept = {n: getattr(old, n) for n in ("seed", "optim", "mesh", "ckpt", "log")}
    data = DataConfig(source="files", max_length=old.data.max_length)
    return Settings(method="lora", model=old.model, lora=old.lora, data=data, **kept)


def nearest(fitted: Fitted, tasks: TaskSet, vector_C: np.ndarray) -> Nearest:
    """Return the training task with the description nearest to a vector."""
    arrays = fitted.session.tasks
    assert arrays is not None  # a run of a set of tasks has them

    def unit(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    best = Nearest("", 2.0)
    each = zip(tasks.names, tasks.held_out, arrays.choices["condition"], strict=True)
    for name, held_out, x_nC in each:
        distance = 1 - float(np.max(unit(x_nC) @ unit(vector_C)))
        if not held_out and distance < best.distance:
            best = Nearest(name, max(distance, 0.0))
    return best
