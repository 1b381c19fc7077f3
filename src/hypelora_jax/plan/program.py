"""The training step, built from shapes without weights, data, tokenizer or downloads.

It is built by the same functions as in `train`, so the planned step is the real one.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from hypelora_jax import families, hyper
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task, glue_task, unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop import base as bases
from hypelora_jax.interop.tensors import MODEL_CONFIG, load_config
from hypelora_jax.model import Model
from hypelora_jax.plan.topology import Topology
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import (
    batch_shardings,
    batch_size_per_device,
    make_mesh,
)
from hypelora_jax.train import ensembles
from hypelora_jax.train.optimizer import blend_alpha, loss_temperature, optimizer
from hypelora_jax.train.state import state_shardings
from hypelora_jax.train.step import build_step

HUB = {  # models with known sizes, which need no download
    "FacebookAI/roberta-base": "roberta_base",
    "FacebookAI/roberta-large": "roberta_large",
    "roberta-base": "roberta_base",
    "roberta-large": "roberta_large",
    "minilm": "minilm",
    bases.MINILM: "minilm",
}
STEPS = 1000  # length of the schedules; it changes no shape


class Step(NamedTuple):
    """A step and the shapes of its arguments, each with its sharding."""

    function: Any  # jitted: (state, frozen, batch) -> (state, info)
    arguments: tuple  # state, frozen, batch
    model: Model
    mesh: Mesh
    rows_per_chip: int  # of one micro-batch
    conditions: int  # U, the distinct conditions of a batch


def encoder_config(path: str) -> EncoderConfig:
    """Return the sizes of the base model at `model.path`, without a download.

    Raises:
      UserError: it is a hub model whose sizes are not built in.
    """
    if path.startswith("random:"):
        return families.preset(path.removeprefix("random:"))
    if path in HUB:
        return families.preset(HUB[path])
    folder = epath.Path(path)
    if (folder / MODEL_CONFIG).exists():
        return load_config(folder)
    raise UserError(
        f"config.model.path is {path!r}, whose sizes are not known here; expected a "
        f"folder with config.json, random:PRESET, or one of {', '.join(HUB)}"
    )


def num_outputs(settings: Settings) -> int:
    """Return the width of the logits; files are not read, so it is num_classes then."""
    if settings.data.source in ("tfds", "glue_dir"):
        return glue_task(settings.data.task).task.num_outputs
    return 2 if settings.data.source == "movie_reviews" else settings.data.num_classes


def _label_width(settings: Settings) -> int:
    """Return the width of embedded names of classes; 0 without a set of tasks."""
    if not settings.tasks.file:
        return 0
    return encoder_config(settings.condition.encoder).width


def _task(settings: Settings, outputs: int) -> Task:
    """Return the task, of which only the shapes matter.

    Files are not read, so the tasks of a set are as many as a batch has.
    """
    tasks = settings.condition.distinct or settings.tasks.per_batch
    about = unnamed(outputs)
    condition, width = settings.condition, 0
    if hyper.embeds(condition) and not condition.width:
        width = encoder_config(condition.encoder).width * condition.parts
    names = _label_width(settings)
    return about._replace(tasks=tasks, label_width=names, condition=width)


def build(settings: Settings, topology: Topology) -> Step:
    """Build the step of a run on a slice; all rows of its batch are max_length long.

    Raises:
      UserError: sizes do not divide, or max_length is too long for the model.
    """
    config, outputs = _sizes(settings)
    mesh = make_mesh(settings.mesh, topology.devices)
    optim = settings.optim
    rows = batch_size_per_device(optim.batch_size // optim.accumulate, mesh)
    model = model_lib.build(settings, config, _task(settings, outputs))
    state, frozen, tx = abstract(settings, model)
    batch = batch_shapes(settings, outputs)
    batch |= head_shapes(settings, model, outputs)
    batch |= condition_shapes(settings, model)
    table = families.of(config).shardings
    of_frozen = rules.shardings(frozen, mesh, table)
    of_state = state_shardings(state, tx, mesh, table)
    step = build_step(
        model,
        tx,
        blend_alpha(settings.blend, STEPS, optim.accumulate),
        mesh,
        accumulate=optim.accumulate,
        temperature=loss_temperature(settings.loss, STEPS),
        skip_nonfinite=optim.skip_nonfinite > 0,
        conditions=settings.uncertainty.conditions,
        seeds=settings.uncertainty.seeds,
        shardings=(of_state, of_frozen),
    )
    # Shapes carry the shardings of training, so that XLA plans the same transfers.
    where = (of_state, of_frozen, batch_shardings(mesh, batch))
    of_conditions = [n for n in model.reads if n in batch and n != "row"]
    distinct = max((len(batch[n]) for n in of_conditions), default=1)
    distinct = max(distinct, settings.uncertainty.conditions)
    arguments = rules.placed((state, frozen, batch), where)
    return Step(step, arguments, model, mesh, rows, distinct)


def _sizes(settings: Settings) -> tuple[EncoderConfig, int]:
    """Return the sizes of the encoder, and the width of the logits."""
    config, path = encoder_config(settings.model.path), settings.model.path
    if settings.data.max_length > families.of(config).max_tokens(config):
        raise UserError(
            f"config.data.max_length is {settings.data.max_length}, but {path} has "
            f"room for {families.of(config).max_tokens(config)} tokens; set "
            "data.max_length to that or less"
        )
    return config, num_outputs(settings)


def bytes_on_one(arguments: Any) -> int:
    """Return the bytes of the arguments on one chip."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arguments)
    )


def abstract(settings: Settings, model: Model) -> tuple:
    """Return (state, frozen tree, optimizer); the first two are shapes."""
    tx = optimizer(settings.optim, STEPS)

    def make(key) -> tuple:
        params = model.init(key)
        parts = [model.split(params)] * settings.uncertainty.seeds
        trainable, frozen = parts[0] if len(parts) == 1 else ensembles.stack(parts)
        return ensembles.start(trainable, tx, [key] * len(parts)), frozen

    return *jax.eval_shape(make, jax.eval_shape(lambda: jax.random.key(0))), tx


def batch_shapes(settings: Settings, outputs: int) -> dict[str, Any]:
    """Return the shapes of a `types.Batch` whose rows have max_length tokens."""
    rows, tokens = settings.optim.batch_size, settings.data.max_length
    of = jax.ShapeDtypeStruct
    label = of((rows,), jnp.float32 if outputs == 1 else jnp.int32)
    if settings.loss.labels == "soft":
        label = of((rows, outputs), jnp.float32)
    return {
        "ids": of((rows, tokens), jnp.int32),
        "mask": of((rows, tokens), jnp.bool_),
        "types": of((rows, tokens), jnp.int32),
        "label": label,
        "weight": of((rows,), jnp.float32),
    }


def head_shapes(settings: Settings, model: Model, outputs: int) -> dict[str, Any]:
    """Return the shapes of the entries of a batch that only the head reads."""
    rows, of = settings.optim.batch_size, jax.ShapeDtypeStruct
    known = {
        "task": of((rows,), jnp.int32),
        "labels": of((rows, outputs, _label_width(settings)), jnp.float32),
    }
    return {name: known[name] for name in model.parts.head.reads}


def condition_shapes(settings: Settings, model: Model) -> dict[str, Any]:
    """Return the shapes of the conditions that the conditioner reads, at most B.

    As in training, rows share conditions if there are fewer conditions U than rows B.
    In a set of tasks they are groups in order, and otherwise each row has an index.
    """
    cond, rows = model.parts.cond, settings.optim.batch_size
    reads = {} if cond is None else cond.reads
    groups = settings.tasks.per_batch if settings.tasks.file else 0
    distinct = min(groups or settings.condition.distinct or rows, rows)
    of = jax.ShapeDtypeStruct
    out = {
        name: of((distinct, *shape), jnp.float32 if shape else jnp.int32)
        for name, shape in reads.items()
        if name in model.reads  # the model makes the others
    }
    indexed = out and not groups and 1 < distinct < rows
    return out | ({"row": of((rows,), jnp.int32)} if indexed else {})
