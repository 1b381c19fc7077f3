"""A session: everything that a run needs in memory, built once from its settings.

Build order: resolve the base model -> functions -> parameters placed on the mesh ->
data. Evaluation and prediction of a finished run use the same code.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from hypelora_jax import families, trees
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import Settings
from hypelora_jax.data import buckets, conditions, sources
from hypelora_jax.data.batches import Dataset, dataset, describe, warn_of_cuts
from hypelora_jax.data.class_weights import class_weights
from hypelora_jax.data.iterator import shapes
from hypelora_jax.data.layouts import packing
from hypelora_jax.data.layouts.packing import Packing
from hypelora_jax.data.layouts.task_batches import TaskArrays, TaskPlan
from hypelora_jax.data.tables import Corpus, digest
from hypelora_jax.data.tasks import Task, TaskSet
from hypelora_jax.data.tokens import Tokenizer, cached
from hypelora_jax.errors import UserError
from hypelora_jax.families.family import Family
from hypelora_jax.interop import base as bases
from hypelora_jax.keys import named_key
from hypelora_jax.model import Model
from hypelora_jax.run import records
from hypelora_jax.sharding.mesh import make_mesh, row_ways
from hypelora_jax.train import ensembles, initial, scoring
from hypelora_jax.train.conditioning import (
    checks,
    given_vectors,
    targets,
    task_conditions,
    wordings,
)
from hypelora_jax.train.optimizer import blend_alpha
from hypelora_jax.train.scoring import Forward
from hypelora_jax.types import Key, Params


class Session(NamedTuple):
    """What training, evaluation and prediction of one run share.

    A session that only predicts has no datasets; its `edges` and `total_steps` come
    from the run's record.
    """

    settings: Settings
    base: bases.Base
    task: Task
    tokenizer: Tokenizer
    model: Model
    mesh: Mesh
    forward: Forward  # jitted functions of evaluation and prediction
    trainable: Params  # before training
    frozen: Params  # the backbone and all else that does not train, on the mesh
    datasets: Mapping[str, Dataset] = {}  # tokenised splits
    edges: tuple[int, ...] = ()  # lengths T of the buckets, in tokens
    packed: Packing | None = None  # shape of packed batches, if train is packed
    steps_per_epoch: int = 1
    total_steps: int = 1  # of the whole run
    class_weights: tuple[float, ...] = ()  # in the training loss; (): all classes 1
    digests: Mapping[str, str] = {}  # SHA-256 of the examples of each split
    task_set: TaskSet | None = None  # these are None without a set of tasks
    tasks: TaskArrays | None = None  # what the tasks give to batches
    plan: TaskPlan | None = None  # tasks and rows of each training step

    @property
    def family(self) -> Family:
        """The family of the base model."""
        return families.of(self.base.config)

    def alpha_after(self, step: int) -> jax.Array:
        """Return the blending weight of the last finished step, used in evaluation."""
        optim = self.settings.optim
        alpha = blend_alpha(self.settings.blend, self.total_steps, optim.accumulate)
        return alpha(max(step - 1, 0))


class Keys(NamedTuple):
    """Base keys of a run: `init` draws parameters, `train` dropout and random A."""

    init: Key
    train: Key
    data: int


def keys(settings: Settings) -> Keys:
    """Return a seed's keys; seed_scope=init lets seeds share data order and dropout."""
    shared = 42 if settings.seed_scope == "init" else settings.seed  # METHOD A.8
    init, train = _streams(settings.seed, shared)
    return Keys(init, train, shared)


@partial(jax.jit, static_argnums=(0, 1))  # one small program in place of four
def _streams(seed: int, shared: int) -> tuple[Key, Key]:
    init = named_key(jax.random.key(seed), "init")
    return init, named_key(jax.random.key(shared), "train")


def train_keys(settings: Settings) -> list[Key]:
    """Return the training key of each seed that is trained side by side."""
    return [keys(own).train for own in ensembles.of_seeds(settings)]


def max_length(settings: Settings, base: bases.Base) -> int:
    """Return data.max_length, checked against the positions of the model.

    Raises:
      UserError: the model has fewer positions.
    """
    limit = families.of(base.config).max_tokens(base.config)
    wanted = settings.data.max_length
    if wanted > limit:
        raise UserError(
            f"config.data.max_length is {wanted}, but {base.name} has room for "
            f"{limit} tokens; set data.max_length to that or less"
        )
    return wanted


def open_session(
    settings: Settings,
    task: Task,
    revision: str | None = None,
    mesh: Mesh | None = None,
) -> Session:
    """Build the model and the parameters for a task, without data.

    Args:
      settings: settings of the run.
      task: the task that the run learns.
      revision: resolved commit of the base model, if a run is resumed.
      mesh: the mesh that parameters are placed on; None uses the mesh of the settings.

    Raises:
      UserError: a model or name does not exist, or parts do not fit together.
    """
    base = bases.resolve(settings.model.path, revision or settings.model.revision)
    max_length(settings, base)
    words = bases.read_tokenizer(base)
    mesh = mesh or make_mesh(settings.mesh)
    model = model_lib.build(settings, base.config, task)
    inits = [keys(own).init for own in ensembles.of_seeds(settings)]
    trainable, frozen = initial.parameters(settings, model, base, task, mesh, inits)
    forward = scoring.forward(model, mesh)
    return Session(settings, base, task, words, model, mesh, forward, trainable, frozen)


def load_corpus(settings: Settings) -> Corpus:
    """Load the corpus of a run; its splits depend on the run's data seed."""
    seed = keys(settings).data
    corpus = sources.load(settings.data, seed, settings.condition, settings.tasks)
    return corpus._replace(task=task_conditions.described(settings, corpus))


def with_data(
    session: Session, corpus: Corpus, record: dict[str, Any] | None = None
) -> Session:
    """Add tokenised splits, buckets and the number of steps to a session.

    Args:
      session: a session without data.
      corpus: its data.
      record: that of the session's run, if it has begun; its batches keep their shapes.

    Raises:
      UserError: the corpus has no split train, or its classes cannot be weighted, or
        packed rows cannot be divided among the devices.
    """
    settings = session.settings
    data, optim, words = settings.data, settings.optim, cached(session.tokenizer)
    checks.check(settings, session.model, corpus.tasks)
    tasks = task_conditions.arrays(settings, session.model, corpus)
    datasets = {
        name: dataset(table, words, data.max_length, tasks)
        for name, table in corpus.splits.items()
    }
    warn_of_cuts(datasets.values(), data.max_length)
    if "train" not in datasets:
        corpus.splits["train"]  # raises the error that lists the splits
    train, size = datasets["train"], optim.batch_size
    lengths, multiple = train.lengths, optim.accumulate * row_ways(session.mesh)
    epochs = task_conditions.epochs(settings, corpus.tasks, len(lengths))
    edges, packed = shapes(lengths, data, size, multiple, record or {}, epochs)
    per_epoch = buckets.steps_per_epoch(lengths, edges, size)
    about = describe(train, edges, size)
    plan = None
    if packed is not None:
        layout = packing.layout(lengths, packed)
        per_epoch, about = layout.steps, packing.describe(lengths, layout)
    if corpus.tasks is not None:
        plan = task_conditions.plan(settings, corpus.tasks, train, edges)
        per_epoch = plan.steps
    logging.info("train: %s", about)
    session = session._replace(
        digests={name: digest(table) for name, table in corpus.splits.items()},
        datasets=datasets,
        edges=edges,
        packed=packed,
        steps_per_epoch=per_epoch,
        total_steps=per_epoch * optim.num_epochs,
        task_set=corpus.tasks,
        tasks=tasks,
        plan=plan,
    )
    session = _with_conditions(session)
    if session.model.objective.targets:
        of_run = (settings, session.model, session.base, corpus.tasks, session.mesh)
        frozen = targets.with_targets(session.frozen, *of_run)
        session = session._replace(frozen=frozen)
    return session._replace(class_weights=_class_weights(session, train))


def _class_weights(session: Session, train: Dataset) -> tuple[float, ...]:
    """Find the weights of the classes in the training loss, and log them."""
    loss, names = session.settings.loss, session.task.labels
    soft_NY = train.soft if loss.labels == "soft" else None
    found = class_weights(loss.class_weights, names, train.label, soft_NY)
    if found:
        named = zip(names, found, strict=True)
        logging.info("class weights: %s", ", ".join(f"{n} {x:.4g}" for n, x in named))
    return found


def _with_conditions(session: Session) -> Session:
    """Check what train is conditioned on; standardise it, if the settings say so."""
    settings = session.settings
    if session.tasks is None:
        given = session.datasets["train"].condition
        given_vectors.check(settings, session.model, given)
    moments = _moments(session) if settings.condition.standardise else {}
    frozen = session.frozen
    for path, found in moments.items():
        frozen = given_vectors.standardised(frozen, path, found)
    if settings.condition.sign or wordings.WHITENING in trees.flatten(frozen):
        described = (session.task_set, session.tasks, moments.get("cond/standard"))
        leaves = wordings.leaves(settings, *described)
        frozen = given_vectors.placed(frozen, leaves)
    return session._replace(frozen=frozen)


def _moments(session: Session) -> dict[str, given_vectors.Moments]:
    """Return mean and deviation of what train is conditioned on, by path of leaves."""
    if session.tasks is not None and session.task_set is not None:
        return task_conditions.moments(session.tasks, session.task_set)
    given = session.datasets["train"].condition
    return {} if given is None else {"cond/standard": conditions.moments(given)}


def record_of(session: Session) -> dict[str, Any]:
    """Return the contents of config.json of the session's run."""
    about = (session.settings, session.task, session.base, session.mesh)
    record = records.record(*about, session.edges, session.total_steps)
    record |= {n: x for n, x in data_of(session).items() if n not in record}
    if file := session.settings.condition.file:
        record["condition_file"] = conditions.file_sha256(file)
    return record


def data_of(session: Session) -> dict[str, Any]:
    """Return what a record says about the data, to compare when a run is resumed."""
    out: dict[str, Any] = {"task": session.task, "buckets": list(session.edges)}
    out["total_steps"] = session.total_steps
    if session.packed is not None:
        out["packing"] = list(session.packed)
    if session.task_set is not None:
        out["tasks"] = task_conditions.sha256(session.task_set)
        if session.model.objective.targets:
            out["adapters"] = targets.sha256(session.task_set)
    if session.digests:
        out[records.DIGESTS] = dict(session.digests)
    if session.class_weights:
        out["class_weights"] = list(session.class_weights)
    train = session.datasets.get("train")
    if train is not None and train.condition is not None:
        out["condition"] = conditions.about(train.condition)
    return out
