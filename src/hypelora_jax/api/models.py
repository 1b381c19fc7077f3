"""Models in Python: the model built on a base model, its step and its adapter.

A model, its step and its adapter are functions of arrays. The caller owns the
parameters and the loop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from hypelora_jax import families
from hypelora_jax import model as model_lib
from hypelora_jax.api.base_models import BaseModel
from hypelora_jax.config.adapter_sections import BlendConfig
from hypelora_jax.config.sections import MeshConfig
from hypelora_jax.config.settings import Settings, from_dict
from hypelora_jax.data.tasks import Task, unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.keys import named_key
from hypelora_jax.model import Model
from hypelora_jax.sharding.mesh import make_mesh, replicated
from hypelora_jax.train.optimizer import Schedule, blend_alpha
from hypelora_jax.train.scoring import rows_of
from hypelora_jax.train.state import TrainState, init_state
from hypelora_jax.train.step import Info, build_step
from hypelora_jax.types import Adapter, Batch, Key, Params

# Sections of a config that shape a model; all others belong to a run.
SECTIONS = ("model", "hyper", "condition", "blend", "lora", "head", "loss")


def build(
    base: BaseModel,
    labels: Sequence[str] = (),
    method: str = "hyper_mlp",
    **sections: Mapping[str, Any],
) -> Model:
    """Build the functions of a model: `init`, `split`, `adapt` and `classify`.

    `model.init(key)` returns the parameters as nested dicts. `backbone` comes from the
    files of the base model, and so does `head` if they have one; the rest is drawn.

        model = build(base, ("negative", "positive"), "lora", lora={"rank": 4})

    Args:
      base: the base model.
      labels: names of the Y classes; () builds a regression, whose Y is 1.
      method: one of `hypelora_jax.model.METHODS`.
      **sections: fields of the sections model, hyper, condition, blend, lora, head and
        loss of a config, as dicts; docs/configs.md lists them.

    Raises:
      UserError: a section, field, value or method does not exist or does not fit the
        base model.
    """
    task = _task(labels)
    settings = _settings(method, sections)
    config = base.base.config
    made = model_lib.build(settings, config, task)
    kind = families.head_kind(settings.head.kind, task)
    # a head of a kind that files of this family do not have is drawn whole
    outputs = task.num_outputs if kind in families.of(config).heads else None

    def init(key: Key, given: Params | None = None) -> Params:
        if given is None:
            own = [named_key(key, "base")]  # the key that a drawn base has in a run
            head = made.parts.head
            backbone, (one,) = bases.load_heads(base.base, head, outputs, own)
            given = {"backbone": backbone, "head": one}
        return made.init(key, jax.tree.map(jax.numpy.asarray, given))

    return made._replace(init=init)


def _task(labels: Sequence[str]) -> Task:
    """Return the task of these classes, or of a number without any."""
    names = tuple(labels)
    good = not isinstance(labels, str) and all(isinstance(n, str) for n in names)
    if not good or len(names) == 1 or len(set(names)) != len(names):
        raise UserError(
            f"labels is {labels!r}; expected two or more different names of classes, "
            "or () for a regression"
        )
    return unnamed(len(names) or 1)._replace(labels=names)


def _settings(method: str, sections: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Return the settings of a model; sections that only a run has are refused."""
    for name, fields in sections.items():
        if name not in SECTIONS:
            raise UserError(
                f"build has no section {name!r}; expected one of {', '.join(SECTIONS)}"
            )
        if name == "model" and {"path", "revision"} & set(fields):
            raise UserError(
                "build takes the base model as its first argument; leave model.path "
                "and model.revision out"
            )
    found = from_dict({"method": method} | {n: dict(x) for n, x in sections.items()})
    for name, what in (("anneal", "number of steps"), ("class_weights", "labels")):
        if (got := getattr(found.loss, name)) != "none":
            raise UserError(
                f"loss.{name} is {got!r}, which needs the {what} of a whole run; leave "
                "it out, or use hypelora train"
            )
    return found


class TrainStep(NamedTuple):
    """A training step, as a pair of functions; made by `train_step`.

    `init(params, key) -> (state, frozen)` splits the parameters and places them.
    Calling it does one step: `step(state, frozen, batch) -> (state, info)`. The
    state is donated, so use only the new one; `state.params` is the trainable tree, and
    `trees.union(state.params, frozen)` is the whole one.
    """

    model: Model
    tx: optax.GradientTransformation
    mesh: Mesh
    run: Callable[[TrainState, Params, Batch], tuple[TrainState, Info]]  # compiled

    def init(self, params: Params, key: Key | None = None) -> tuple[TrainState, Params]:
        """Return the state before the first step and the frozen parameters.

        Args:
          params: from `model.init`. The trainable ones are copied, so `params` stays
            usable after the state is donated.
          key: base key of dropout, into which each step folds its number; None takes
            `jax.random.key(0)`.
        """
        trainable, frozen = self.model.split(params)
        key = jax.random.key(0) if key is None else key
        state = init_state(trainable, self.tx, key)
        return jax.device_put((state, frozen), replicated(self.mesh))

    def __call__(
        self, state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, Info]:
        """Do one step; info has `loss`, `weight`, `grad_norm` and `finite`."""
        _check_batch(self.model, batch, self.model.objective.reads)
        return self.run(state, frozen, batch)


def train_step(
    model: Model,
    tx: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
    accumulate: int = 1,
    deterministic: bool = False,
    alpha: Schedule | None = None,
) -> TrainStep:
    """Build the jitted training step of a model with any optimizer of optax.

    The loss is the one that the section `loss` of `build` describes, and the step is
    the one of `hypelora train`. Weights of examples go into `batch["weight"]`.

    Args:
      model: from `build`.
      tx: the optimizer; it sees only the trainable parameters.
      mesh: devices that share the rows of a batch, from `sharding.mesh.make_mesh`; None
        uses the first device. Parameters are whole on each of them; to shard them as
        well, use `train.step.build_step` with its `shardings`.
      accumulate: micro-batches that a batch is cut into.
      deterministic: no dropout.
      alpha: weight of the initial factors in blending, by step. None is 0, whatever
        the section `blend` of `build` says: then nothing is blended.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    # of the default section: 0 at every step
    schedule = blend_alpha(BlendConfig(), 1) if alpha is None else alpha
    run = build_step(
        model, tx, schedule, mesh, accumulate=accumulate, deterministic=deterministic
    )
    return TrainStep(model, tx, mesh, run)


def adapter(
    model: Model,
    params: Params,
    batch: Batch | None = None,
    *,
    alpha: float = 0.0,
    key: Key | None = None,
) -> Adapter:
    """Generate the LoRA factors of all layers, multiplied by `lora.alpha` / rank.

    `adapter(...).factors` is {"q": {"a": a_LIR, "b": b_LRO}, ...}, and
    `model.classify(params, adapter, batch)` uses it.

    Args:
      model: from `build`.
      params: the whole parameter tree.
      batch: has what `model.reads` names, if the model reads conditions, such as
        "condition", (U, C) or (U, S, C); "row" may be left out. Then there are factors
        for each of the U conditions.
      alpha: weight of the initial factors in blending, not `lora.alpha`.
      key: draws dropout and a random A; None is deterministic.

    Raises:
      UserError: the model reads conditions and the batch has none.
    """
    given = {} if batch is None else batch
    if model.reads:
        _check_batch(model, given, ())
    own = {name: given[name] for name in model.reads if name in given}
    return jax.jit(model.adapt)(params, own, alpha, key)


def _check_batch(model: Model, batch: Batch, names: Sequence[str]) -> None:
    """Refuse a batch without an entry that is read; "row" may always be left out.

    Without `names` only the conditions are looked for, which an adapter needs.
    """
    rows = (*rows_of(model), *names) if names else ()
    expected = (*rows, *(name for name in model.reads if name != "row"))
    ways = {
        "label": "give labels to BaseModel.batch",
        "condition": "add the vectors, float32 (U, C), to the batch",
        "which": "add the index of each condition's task, int32 (U,), to the batch",
        "sentences": "add embeddings of sentences, float32 (U, k, C), to the batch",
        "task": "add the index of each row's task, int32 (B,), to the batch",
        "labels": "add the embedded names of each row's classes, float32 (B, Y, E)",
    }
    if missing := [name for name in expected if name not in batch]:
        way = ways.get(missing[0], "BaseModel.batch makes a batch of texts")
        raise UserError(
            f"the batch has {sorted(batch)}; expected {missing[0]!r} as well: {way}"
        )
