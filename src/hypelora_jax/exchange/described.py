"""The adapter that a hyper-network writes from a description, as a model and a run."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax import families, files, trees
from hypelora_jax import model as model_lib
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.adapters import sign
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError, choose
from hypelora_jax.evaluate import averaging, evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.exchange import imported_run, tuning
from hypelora_jax.exchange.imported_run import Note
from hypelora_jax.families.label_text_head import with_labels
from hypelora_jax.inference import asked_tasks
from hypelora_jax.inference.asked_tasks import AskedTask
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import rules
from hypelora_jax.train import scoring
from hypelora_jax.train.conditioning import task_conditions
from hypelora_jax.train.conditioning.nearness import Nearest, nearest_of
from hypelora_jax.types import Lora, Params

LABELS = 10_000  # most labels of an adapter, which needs no room in a bank


class Described(NamedTuple):
    """The adapter of a described task, in memory.

    `fitted` is a model of the method `lora`, with the head and the calibrator of the
    run that wrote it. `vector` (C,) is the condition that it was written from, and
    `tuned` says how examples changed the adapter, if there were any.
    """

    source: Fitted
    fitted: Fitted
    description: str
    vector: np.ndarray
    near: Nearest
    tuned: dict[str, Any] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.fitted.session.task.labels

    def about(self) -> dict[str, Any]:
        """Return what config.json of a run of this adapter says about it."""
        out = {
            "description": self.description,
            **self.near._asdict(),
            "made_by": str(self.source.run.path),
        }
        return out | ({"tuned": self.tuned} if self.tuned else {})


def adapt(
    workdir: str,
    output: str,
    description: str,
    labels: Sequence[str] = (),
    examples: str = "",
    tune: str = "",
) -> dict[str, Any]:
    """Write a run folder of the adapter that a run makes from a description.

    Args:
      workdir: a run whose network reads descriptions.
      output: a folder that does not exist or is empty.
      description: what the new task asks; it and the rest are those of `described`.
      labels: names of the classes.
      examples: a file of labelled rows, or "".
      tune: what they change.

    Returns:
      What `save` returns.

    Raises:
      UserError: something does not fit; then nothing is written.
    """
    files.check_empty(Run.open(output).path, "--output", output)
    source = evaluation.open_fitted(workdir)
    return save(described(source, description, labels, examples, tune), output)


def described(
    source: Fitted,
    description: str,
    labels: Sequence[str] = (),
    examples: str = "",
    tune: str = "",
) -> Described:
    """Return the adapter that a run writes for a new task.

    Args:
      source: a run whose network reads descriptions.
      description: what the task asks, in words like those of training.
      labels: names of the classes; () takes those of the run. With
        head.kind=label_text they may be new ones.
      examples: a file of labelled rows that tune the adapter, or "".
      tune: what they change, a key of `tuning.TUNED`; "" is the condition.

    Raises:
      UserError: the run reads no descriptions, or something does not fit.
    """
    if tune and not examples:
        raise UserError(
            f"--tune={tune} changes the adapter by examples, but there are none; "
            "expected --examples=FILE too, or no --tune"
        )
    tune = tune or "condition"
    change = choose(tuning.TUNED, tune, "--tune")
    asked = _asked(source, description, labels)
    description, names = asked.description, asked.labels or source.session.task.labels
    condition = source.session.settings.condition
    head = _head(source, names)
    vector_C = task_conditions.of_descriptions(condition, [[description]])[0][0]
    made = _fitted(source, names, head, vector_C)
    if not examples:
        return Described(source, made, description, vector_C, _near(source, vector_C))
    table = tuning.examples(examples, made.session.task)
    vector_C, calibrator, about = change(source, made, head, vector_C, table)
    new = _fitted(source, names, head, vector_C)._replace(calibrator=calibrator)
    losses = {"before": tuning.loss(made, table), "after": tuning.loss(new, table)}
    said = {"what": tune, "examples": len(table.label), "loss": losses, **about}
    return Described(source, new, description, vector_C, _near(source, vector_C), said)


def save(made: Described, output: str) -> dict[str, Any]:
    """Write the adapter as a run at step 0, which every command takes like any other.

    Returns:
      `output`, `labels`, and what config.json says about it as `described`.

    Raises:
      UserError: the folder is not empty, or cannot be written.
    """
    files.check_empty(Run.open(output).path, "--output", output)
    run, session, about = Run.create(output), made.fitted.session, made.about()
    note = Note(session.settings, session.task, made.fitted.calibrator)
    imported_run.begin(session, None, run, note)
    record = files.read_json(run.config_file)
    files.write_json(run.config_file, record | {"described": about})
    return {"output": str(run.path), "labels": list(made.labels), **about}


def _asked(fitted: Fitted, description: str, labels: Sequence[str]) -> AskedTask:
    """Return what a task asks, for a run that can write its adapter."""
    session, workdir = fitted.session, fitted.run.path
    if session.task_set is None or session.model.reads != ("condition", "row"):
        raise UserError(
            f"{workdir} has condition.source={session.settings.condition.source}; "
            "expected a run of a set of tasks that reads descriptions and nothing "
            "else, with condition.source=text"
        )
    if session.settings.uncertainty.kind != "none":
        raise UserError(
            f"{workdir} averages over {session.settings.uncertainty.kind}, which one "
            "adapter does not; expected uncertainty.kind=none"
        )
    if "task" in session.model.parts.head.reads:
        raise UserError(
            f"head.kind={session.settings.head.kind} has a layer for each training "
            "task, and none for a new one; expected head.kind=classes or label_text"
        )
    if not description.strip():
        raise UserError("the description is empty; expected what the task asks")
    reader = asked_tasks.reader(fitted, None, LABELS)
    assert reader is not None  # by the checks above
    cells = {"description": description, "labels": tuple(labels)}
    if what := reader.fault(cells):
        raise UserError(what)
    return reader.asked(cells)


def _head(fitted: Fitted, labels: Sequence[str]) -> Params:
    """Return a head with a last layer for the labels.

    That of `label_text` is linear in the text's state once the names are known.
    """
    session = fitted.session
    head = trees.union(fitted.trainable, fitted.frozen)["head"]
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


def _fitted(
    source: Fitted, labels: tuple[str, ...], head: Params, vector_C: np.ndarray
) -> Fitted:
    """Return a model of the method `lora` with the factors of a condition.

    `head` is that of the run; the one of the model has the sign of the condition.
    """
    old = source.session
    settings = _settings(source)
    task = Task("described", old.task.kind, labels, old.task.metrics, old.task.pair)
    model = model_lib.build(settings, old.base.config, task)
    own = _written(source, head, vector_C)
    table = families.of(old.base.config).shardings
    own = rules.place(own, rules.shardings(own, old.mesh, table))
    params = {**own, "backbone": source.frozen["backbone"]}
    trainable, frozen = model.split(params)
    session = old._replace(
        settings=settings,
        task=task,
        model=model,
        forward=scoring.forward(model, old.mesh),
        trainable=trainable,
        frozen=frozen,
        total_steps=1,
        task_set=None,
        tasks=None,
    )
    fitted = source._replace(
        session=session,
        forward=session.forward,
        trainable=trainable,
        frozen=frozen,
        step=0,
    )
    return fitted._replace(answer=averaging.answerer(fitted))


def _written(source: Fitted, head: Params, vector_C: np.ndarray) -> Params:
    """Return `lora`, the compact factors of all adapted layers, and `head`."""
    parts = source.session.model.parts
    sites = [s for s in (parts.hyper_sites, parts.lora_sites) if s]

    @jax.jit
    def write(params: Params, vector_1C: jax.Array) -> tuple[list[Lora], Params]:
        found = model_lib.conditions(parts, params, {"condition": vector_1C})
        made = model_lib.compact(parts, params, found, source.alpha)
        return [x for _, x in made], sign.of_head(params["head"], found)

    params = trees.union(source.trainable, source.frozen)
    params = {n: x for n, x in params.items() if n != "backbone"} | {"head": head}
    made, head = write(params, jnp.asarray(vector_C, jnp.float32)[None])
    placed = lora_lib.place(list(zip(sites, made, strict=True)), parts.num_layers)
    layers: dict[str, set[int]] = {}
    for each in sites:
        for module, site in each.items():
            layers.setdefault(module, set()).update(site.layers)
    lora = {
        module: {
            name: np.asarray(x)[np.array(sorted(own))]
            for name, x in placed[module].items()
        }
        for module, own in layers.items()
    }
    return {"lora": lora, "head": head}


def _settings(source: Fitted) -> Settings:
    """Return settings of a run with the same sites and static factors."""
    old, head = source.session.settings, source.session.model.parts.head
    kept = {n: getattr(old, n) for n in ("seed", "optim", "mesh", "ckpt", "log")}
    if not head.reads:  # otherwise it has become a head of classes
        kept["head"] = old.head
    data = DataConfig(source="files", max_length=old.data.max_length)
    return Settings(method="lora", model=old.model, lora=old.lora, data=data, **kept)


def _near(source: Fitted, vector_C: np.ndarray) -> Nearest:
    tasks, arrays = source.session.task_set, source.session.tasks
    assert tasks is not None and arrays is not None  # `_asked` has seen them
    parts = source.session.settings.condition.parts
    return nearest_of(tasks, arrays.choices["condition"], parts)(vector_C)
