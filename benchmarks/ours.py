"""Our side of a comparison: a model, its parameters, and its training step."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import MeshConfig, Settings, from_dict
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop import base as bases
from hypelora_jax.model import Model
from hypelora_jax.sharding import memory
from hypelora_jax.sharding.mesh import make_mesh, put_batch
from hypelora_jax.train import optimizer
from hypelora_jax.train.state import TrainState, init_state
from hypelora_jax.train.step import build_step
from hypelora_jax.types import Params

CLASSES = 2
STEPS = 1000  # of the schedule of the learning rate
# As in the rival's step, gradients are not clipped.
OPTIM = {"clip": 0.0, "schedule": "constant", "warmup": 0.0, "lr": 1e-4}


class Ours(NamedTuple):
    """A model with parameters of its own, on one device."""

    settings: Settings
    config: EncoderConfig
    model: Model
    params: Params


class Step(NamedTuple):
    """A training step that goes on with its own state each time it is called."""

    run: Callable[[], dict[str, jax.Array]]
    seconds_to_compile: float
    mib: float  # of the temporaries that XLA reports


@functools.cache
def base(path: str, layers: int = 0) -> tuple[EncoderConfig, Params]:
    """Sizes and parameters of a base model, `random:PRESET` or `minilm`.

    `layers` replaces the number of layers of random weights, unless it is 0.
    """
    found = bases.resolve(path)
    if layers:
        sizes = dataclasses.replace(found.config, layers=layers)
        found = found._replace(config=sizes)
    params = bases.load(found, CLASSES, jax.random.key(0))
    return found.config, jax.tree.map(jnp.asarray, params)


@functools.cache
def ours(path: str, method: str = "lora", layers: int = 0, **sections: Any) -> Ours:
    """Build a model on a base model.

    `sections` are as in `from_dict`, as tuples of pairs, which can be hashed.
    """
    config, params = base(path, layers)
    given = {name: dict(fields) for name, fields in sections.items()}
    settings = from_dict({"method": method, "optim": OPTIM} | given)
    model = model_lib.build(settings, config, unnamed(CLASSES))
    params = model.init(jax.random.key(1), params)
    return Ours(settings, config, model, _shaken(params))


def _shaken(params: Params) -> Params:
    """Give B numbers, so that no gradient is zero because B is."""
    if "lora" not in params:
        return params
    key = jax.random.key(2)

    def draw(path: Any, x: jax.Array) -> jax.Array:
        is_b = path[-1].key == "b"
        return 0.02 * jax.random.normal(key, x.shape) if is_b else x

    lora = jax.tree_util.tree_map_with_path(draw, params["lora"])
    return {**params, "lora": lora}


def batch_of(config: EncoderConfig, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Draw a batch of random tokens and labels, without padding."""
    chance, first = np.random.default_rng(0), config.vocab // 2
    return {
        "ids": chance.integers(first, config.vocab, (rows, tokens)).astype(np.int32),
        "mask": np.ones((rows, tokens), bool),
        "types": np.zeros((rows, tokens), np.int32),
        "label": chance.integers(0, CLASSES, rows).astype(np.int32),
        "weight": np.ones(rows, np.float32),
    }


def mesh() -> Any:
    """The mesh of one device that every row uses."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


def start(model: Ours) -> tuple[TrainState, Params, Any]:
    """Return (state before the first step, frozen parameters, optimizer)."""
    trainable, frozen = model.model.split(model.params)
    tx = optimizer.optimizer(model.settings.optim, STEPS)
    return init_state(trainable, tx, jax.random.key(3)), frozen, tx


def step(model: Ours, rows: int, tokens: int, dropout: bool, **more: Any) -> Step:
    """Compile the step of `hypelora train` at a shape, and return it.

    `more` has further entries of the batch.
    """
    state, frozen, tx = start(model)
    alpha = optimizer.blend_alpha(model.settings.blend, STEPS)
    place = mesh()
    made: Any = build_step(model.model, tx, alpha, place, deterministic=not dropout)
    batch = put_batch(batch_of(model.config, rows, tokens) | more, place)
    memory.trim()  # before and after, as in `hypelora train`
    started = time.perf_counter()
    program = made.lower(state, frozen, batch).compile()
    seconds = time.perf_counter() - started
    memory.trim()

    def run() -> dict[str, jax.Array]:
        nonlocal state  # a step donates its state, so the next one takes the new one
        state, info = program(state, frozen, batch)
        return jax.block_until_ready((state, info))[1]

    bytes_ = program.memory_analysis().temp_size_in_bytes
    return Step(run, seconds, bytes_ / 2**20)
