"""Models in Python: a base model, the model built on it, its step and its adapter.

All of it is functions of arrays. The caller owns the parameters and the loop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from hypelora_jax import families
from hypelora_jax import model as model_lib
from hypelora_jax.config.sections import BlendConfig, MeshConfig
from hypelora_jax.config.settings import Settings, from_dict
from hypelora_jax.data.batches import collate, dataset
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tasks import Task, unnamed
from hypelora_jax.data.tokens import Tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.inference.texts import Text, as_fields
from hypelora_jax.interop import base as bases
from hypelora_jax.keys import named_key
from hypelora_jax.model import Model
from hypelora_jax.sharding.mesh import ROW_NAMES, make_mesh, replicated
from hypelora_jax.train.optimizer import Schedule, blend_alpha
from hypelora_jax.train.state import TrainState, init_state
from hypelora_jax.train.step import Info, build_step
from hypelora_jax.types import Adapter, Batch, Key, Params

# Sections of a config that shape a model; all others belong to a run.
SECTIONS = ("model", "hyper", "condition", "blend", "lora", "head", "loss")


class BaseModel(NamedTuple):
    """A transformer that stays frozen, and its tokenizer; made by `base_model`."""

    base: bases.Base
    tokenizer: Tokenizer

    def batch(
        self,
        texts: Sequence[Text],
        labels: Sequence[int] | Sequence[float] | None = None,
        length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Tokenise texts, or pairs of texts, to the arrays of one `types.Batch`.

        Args:
          texts: B texts, or B pairs of texts.
          labels: for each text its class, 0 to Y - 1, or its number if the model is a
            regression. None leaves "label" out, which prediction does not need.
          length: tokens T of each row; longer texts are cut, which is logged. None
            takes the longest text. A new T compiles a new program.

        Returns:
          ids and types int32 (B, T), mask bool (B, T), weight float32 (B,) of ones, and
          label int32 or float32 (B,).

        Raises:
          UserError: something is not a text, there is not one label for each text, a
            label is negative, or the model has fewer than `length` positions.
        """
        if isinstance(texts, str) or not len(texts):
            raise UserError(f"texts is {texts!r:.60}; expected a list of texts")
        pair = not isinstance(texts[0], str)
        fields = [as_fields(text, i, pair) for i, text in enumerate(texts)]
        limit = families.of(self.base.config).max_tokens(self.base.config)
        if length is not None and not 0 < length <= limit:
            raise UserError(
                f"length is {length}; expected 1 to {limit}, the positions of "
                f"{self.base.name}"
            )
        second = [text[1] for text in fields] if pair else None
        label, index = _labels(labels, len(fields)), np.arange(len(fields))
        table = Table(index, [text[0] for text in fields], second, label)
        data = dataset(table, self.tokenizer, length or limit)
        longest = length or int(data.lengths.max())
        if cut := data.encoded.truncated:
            logging.warning("cut %d of %d texts to %d tokens", cut, len(index), longest)
        out = collate(data, index, longest, len(index))
        unused = {"index"} if labels is not None else {"index", "label"}
        return {name: x for name, x in out.items() if name not in unused}


def _labels(labels: Sequence[Any] | None, n: int) -> np.ndarray:
    """Return labels as int32 or float32 (n,); -1 everywhere without any."""
    if labels is None:
        return np.full(n, -1, np.int32)
    found = np.asarray(labels)
    if found.shape != (n,) or found.dtype.kind not in "iuf":
        raise UserError(
            f"labels is {found.dtype}{list(found.shape)}; expected a list of {n} "
            "numbers, one for each text"
        )
    if found.dtype.kind == "f":
        return found.astype(np.float32)
    if found.min() < 0:
        raise UserError(
            f"labels has {found.min()}; expected classes from 0, so leave out texts "
            "without a label"
        )
    return found.astype(np.int32)


def base_model(path: str = "minilm", revision: str = "main") -> BaseModel:
    """Find a base model and read its tokenizer; download it if it is not here yet.

    Args:
      path: a Hugging Face folder, a hub name "org/name", "minilm", or "random:PRESET".
      revision: branch, tag or commit of a hub model.

    Raises:
      UserError: there is no such model, its files are malformed, or there is no
        connection.
    """
    base = bases.resolve(path, revision)
    return BaseModel(base, bases.read_tokenizer(base))


def build(
    base: BaseModel,
    labels: Sequence[str] = (),
    method: str = "hyper_mlp",
    **sections: Mapping[str, Any],
) -> Model:
    """Build the functions of a model: `init`, `split`, `adapt` and `classify`.

    `model.init(key)` returns the parameters as nested dicts: `backbone` and, as far as
    the files have one, `head` are those of the base model; the rest is drawn.

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
    outputs = task.num_outputs if kind in families.of(config).heads else None

    def init(key: Key, given: Params | None = None) -> Params:
        if given is None:
            own = [named_key(key, "base")]
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
    return from_dict({"method": method} | {n: dict(x) for n, x in sections.items()})


class TrainStep(NamedTuple):
    """A training step, as a pair of functions; made by `train_step`.

    `init(params, key) -> (state, frozen)` splits the parameters and places them.
    Calling the value does one step: `step(state, frozen, batch) -> (state, info)`. The
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
          params: from `model.init`; they are copied.
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

    The loss is that of `build`'s section loss; the step is the one of `hypelora train`.

    Args:
      model: from `build`.
      tx: the optimizer; it sees only the trainable parameters.
      mesh: devices that share the rows of a batch, from `sharding.mesh.make_mesh`; None
        uses the first device. Parameters are whole on each of them; `train.step` has
        the step that cuts them, too.
      accumulate: micro-batches that a batch is cut into.
      deterministic: no dropout.
      alpha: weight of the initial factors by step; None is 0, which is no blending.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
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
    """Generate the LoRA factors of all layers, with the scale alpha / rank folded in.

    `adapter(...).factors` is {"q": {"a": a_LIR, "b": b_LRO}, ...}, and
    `model.classify(params, adapter, batch)` uses it.

    Args:
      model: from `build`.
      params: the whole parameter tree.
      batch: has "condition", (U, C) or (U, S, C), and optionally "row", if the model
        reads conditions; then there are factors for each of the U conditions.
      alpha: weight of the initial factors.
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
    """Refuse a batch without an entry that is read; "row" may always be left out."""
    rows = (*ROW_NAMES, *names) if names else ()
    wanted = (*rows, *(name for name in model.reads if name != "row"))
    if missing := [name for name in wanted if name not in batch]:
        raise UserError(
            f"the batch has {sorted(batch)}; expected {missing[0]!r} as well (see "
            "hypelora_jax.types, and BaseModel.batch, which makes a batch of texts)"
        )
