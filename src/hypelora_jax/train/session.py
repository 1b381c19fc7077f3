"""A run made ready: base model, data, functions, parameters, from its settings.

Build order: resolve the base model -> data -> functions -> parameters placed on the
mesh. Evaluation and prediction of a finished run use the same code.
"""

import hashlib
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from hypelora_jax import families, trees
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import Settings
from hypelora_jax.data import buckets, sources
from hypelora_jax.data.batches import Dataset, dataset, describe, warn_of_cuts
from hypelora_jax.data.tables import Corpus
from hypelora_jax.data.tasks import Task
from hypelora_jax.data.tokens import Tokenizer, tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.keys import named_key
from hypelora_jax.model import Model
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train import ensembles
from hypelora_jax.train.optimizer import Schedule, blend_alpha, optimizer
from hypelora_jax.train.state import TrainState, state_shardings
from hypelora_jax.types import Key, Params


class Workbench(NamedTuple):
    """What training, evaluation and prediction of one model share."""

    settings: Settings
    base: bases.Base
    task: Task
    tokenizer: Tokenizer
    model: Model
    mesh: Mesh
    trainable: Params  # before training
    frozen: Params  # the backbone and what else does not train, on the mesh


class Keys(NamedTuple):
    """Base keys of a run: `init` draws parameters, `train` dropout and random A."""

    init: Key
    train: Key
    data: int


def keys(settings: Settings) -> Keys:
    """Keys of a seed; with seed_scope=init all seeds share data order and dropout."""
    init = named_key(jax.random.key(settings.seed), "init")
    shared = 42 if settings.seed_scope == "init" else settings.seed  # METHOD A.8
    return Keys(init, named_key(jax.random.key(shared), "train"), shared)


def max_length(settings: Settings, base: bases.Base) -> int:
    """data.max_length, checked against the positions the model has."""
    limit = families.of(base.config).max_tokens(base.config)
    wanted = settings.data.max_length
    if wanted > limit:
        raise UserError(
            f"config.data.max_length is {wanted}; {base.name} has room for {limit} "
            "tokens: set data.max_length to that or less"
        )
    return wanted


def workbench(
    settings: Settings,
    task: Task,
    revision: str | None = None,
    mesh: Mesh | None = None,
) -> Workbench:
    """Model and parameters for a task.

    Args:
      revision: resolved commit of the base model, when a run is taken up again.
      mesh: where parameters go; None: the mesh of the settings.
    """
    model_config = settings.model
    base = bases.resolve(model_config.path, revision or model_config.revision)
    max_length(settings, base)
    mesh = mesh or make_mesh(settings.mesh)
    model = model_lib.build(settings, base.config, task)
    trainable, frozen = _parameters(settings, model, base, task, mesh)
    roles = families.of(base.config).tokens
    words = tokenizer(base.folder, roles, base.config.pad_id)
    if words.vocab_size > base.config.vocab:
        raise UserError(
            f"the tokenizer of {base.name} has {words.vocab_size} tokens and the model "
            f"{base.config.vocab}; wanted a tokenizer.json made for this model"
        )
    return Workbench(settings, base, task, words, model, mesh, trainable, frozen)


def _parameters(
    settings: Settings, model: Model, base: bases.Base, task: Task, mesh: Mesh
) -> tuple[Params, Params]:
    """(trainable, frozen) of all seeds, each leaf where its rule says.

    Build order: shapes, shardings, then tensors of files are placed and values are
    drawn where they belong; nothing is drawn in one place and moved to another.
    """
    family = families.of(base.config)
    table, kind = family.shardings, families.head_kind(settings.head.kind, task)
    outputs = task.num_outputs if kind in family.heads else None
    load = partial(bases.load_heads, base, model.parts.head, outputs)
    inits = [keys(own).init for own in ensembles.of_seeds(settings)]
    backbone, heads = None, None
    if base.folder is not None:
        at = [named_key(key, "base") for key in inits]
        backbone, heads = load(at)
        own = {"backbone": backbone}
        backbone = rules.place(own, rules.shardings(own, mesh, table))["backbone"]
        heads = jax.tree.map(np.asarray, heads)

    def draw(data: np.ndarray, backbone: Params | None, heads: list | None) -> tuple:
        inits = [jax.random.wrap_key_data(one) for one in data]
        if heads is None:
            at = [named_key(key, "base") for key in inits]
            backbone, heads = load(at)
        start = {} if backbone is None else {"backbone": backbone}
        parts = [
            model_lib.split(
                settings, model_lib.init_params(model, k, {**start, "head": h})
            )
            for k, h in zip(inits, heads, strict=True)
        ]
        return parts[0] if len(parts) == 1 else ensembles.stack(parts)

    data = np.stack([np.asarray(jax.random.key_data(key)) for key in inits])
    # a backbone that trains goes through the program; any other stays where it is
    trains = trees.matcher(model_lib.method(settings.method).trains)
    inside = backbone if trains("backbone/") else None
    shapes = jax.eval_shape(draw, data, inside, heads)
    where = tuple(rules.shardings(tree, mesh, table) for tree in shapes)
    trainable, frozen = jax.jit(draw, out_shardings=where)(data, inside, heads)
    if backbone is not None and inside is None:
        frozen = {**frozen, "backbone": backbone}
    return trainable, frozen


class Plan(NamedTuple):
    """The data of a training run and how it is cut into steps."""

    datasets: dict[str, Dataset]
    edges: tuple[int, ...]
    steps_per_epoch: int
    total_steps: int


def load_corpus(settings: Settings) -> Corpus:
    """The corpus of a run; its splits depend on the run's data seed."""
    return sources.load(settings.data, keys(settings).data)


def plan(bench: Workbench, corpus: Corpus) -> Plan:
    """Tokenised splits, buckets and the number of steps."""
    settings = bench.settings
    length = settings.data.max_length
    datasets = {
        name: dataset(table, bench.tokenizer, length)
        for name, table in corpus.splits.items()
    }
    warn_of_cuts(datasets.values(), length)
    if "train" not in datasets:
        corpus.splits["train"]  # says which splits there are
    train = datasets["train"]
    optim = settings.optim
    edges = buckets.edges(
        train.lengths, optim.batch_size, length, settings.data.pad_to_max
    )
    per_epoch = buckets.steps_per_epoch(train.lengths, edges, optim.batch_size)
    logging.info("train: %s", describe(train, edges, optim.batch_size))
    return Plan(datasets, edges, per_epoch, per_epoch * optim.num_epochs)


def start(
    bench: Workbench, total_steps: int
) -> tuple[TrainState, optax.GradientTransformation, Schedule]:
    """(shapes and shardings of the state, optimizer, schedule of alpha).

    A checkpoint is restored into them; `first_state` makes the state without one.
    """
    settings = bench.settings
    tx = optimizer(settings.optim, total_steps)
    alpha = blend_alpha(settings.blend, total_steps, settings.optim.accumulate)
    own_keys = [keys(own).train for own in ensembles.of_seeds(settings)]
    shapes = jax.eval_shape(lambda p: ensembles.start(p, tx, own_keys), bench.trainable)
    where = state_shardings(
        shapes, tx, bench.mesh, families.of(bench.base.config).shardings
    )
    abstract = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, where
    )
    return abstract, tx, alpha


def first_state(
    bench: Workbench, abstract: TrainState, tx: optax.GradientTransformation
) -> TrainState:
    """State before the first step, made where `abstract` says."""

    def make(trainable: Params, data: jax.Array) -> TrainState:
        own_keys = [jax.random.wrap_key_data(one) for one in data]
        return ensembles.start(trainable, tx, own_keys)

    seeds = ensembles.of_seeds(bench.settings)
    data = np.stack([np.asarray(jax.random.key_data(keys(s).train)) for s in seeds])
    where = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(make, out_shardings=where)(bench.trainable, data)


def own_frozen(frozen: Params) -> Params:
    """Frozen leaves that are saved with the run: all but the base model's backbone."""
    return {name: tree for name, tree in frozen.items() if name != "backbone"}


def with_own(frozen: Params, own: Params) -> Params:
    """The frozen tree with the saved leaves in the place of fresh ones."""
    backbone = {"backbone": frozen["backbone"]} if "backbone" in frozen else {}
    return trees.union(backbone, own)


def source_hash(base: bases.Base) -> str:
    """SHA-256 over the base model's weight files; "" for random weights."""
    if base.folder is None:
        return ""
    digest = hashlib.sha256()
    for file in sorted(base.folder.glob("*.safetensors"), key=str):
        with file.open("rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
