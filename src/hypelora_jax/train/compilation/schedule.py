"""The programs that training will need, in the order in which it will need them."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hypelora_jax import trees
from hypelora_jax.data import buckets
from hypelora_jax.data.batches import Dataset, eval_batches
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import (
    ROW_NAMES,
    fitting_batch_size,
    own_rows,
    put_batch,
)
from hypelora_jax.train import ensembles
from hypelora_jax.train.compilation.programs import Job, Programs, Show, abstract
from hypelora_jax.train.session import Session, keys
from hypelora_jax.train.state import TrainState
from hypelora_jax.train.training import Training
from hypelora_jax.types import Batch, Params


@contextlib.contextmanager
def compiled_ahead(training: Training, show: Show) -> Iterator[None]:
    """Compile the programs of a run in the background while the context is open.

    The first step announces them: the step of every bucket, and then the functions of
    the evaluation for every length. Several processes compile when they need a program,
    because on some devices they have to compile the same one at the same time.
    """
    if jax.process_count() > 1:
        yield
        return
    with Programs(show) as programs:
        step, forward = training.step, training.forward

        def first(state: TrainState, frozen: Params, batch: Batch) -> tuple:
            training.step = programs.waits("step", step)
            programs.announce(_steps(training, step, state, frozen, batch))
            programs.announce(_evaluation(training.session, state, frozen))
            return training.step(state, frozen, batch)

        training.step = first
        training.forward = forward._replace(
            adapt=programs.waits("adapt", forward.adapt),
            classify=programs.waits("classify", forward.classify),
        )
        yield


def _steps(
    training: Training, step: Any, state: TrainState, frozen: Params, batch: Batch
) -> Iterator[Job]:
    """Yield the step for each length of a batch, that of `batch` first."""
    # the shapes that the step is pinned to: those of a restored key are not the same
    about = (training.abstract, abstract(frozen))
    session = training.session
    for length in _lengths(session, int(state.step)):
        one = _with_length(abstract(batch), length)
        yield Job("step", step, one, partial(tuple, (*about, one)))


def _lengths(session: Session, step: int) -> list[int]:
    """Return the lengths T of the batches from a step on, each once."""
    if session.packed is not None:
        return [session.packed.length]
    if session.plan is not None:
        return session.plan.lengths()
    epoch, done = divmod(step, session.steps_per_epoch)
    optim, seed = session.settings.optim, keys(session.settings).data
    lengths = session.datasets["train"].lengths
    plan = buckets.plan(lengths, session.edges, optim.batch_size, seed, epoch)
    return list(dict.fromkeys(length for _, length in plan[done:] + plan))


def _with_length(batch: Batch, length: int) -> Batch:
    """Return the shapes of a batch whose rows have another length T."""

    def resized(name: str, x: Any) -> Any:
        shape = (*x.shape[:-1], length) if name in ROW_NAMES else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

    return {name: resized(name, x) for name, x in batch.items()}


def _evaluation(session: Session, state: TrainState, frozen: Params) -> Iterator[Job]:
    """Yield the functions of the evaluation, for each length that a split needs."""
    settings, forward = session.settings, session.forward
    reads = forward.reads
    adapt: Any = forward.adapt  # jitted
    member = ensembles.member(settings, state.params, frozen, 0)
    params = abstract(trees.union(*member))
    alpha = jax.ShapeDtypeStruct((), jnp.result_type(float))
    splits = [data for name, data in session.datasets.items() if name != "train"]
    size = fitting_batch_size(settings.optim.batch_size, session.mesh)
    own = own_rows(size, session.mesh)
    batch = next(eval_batches(splits[0], session.edges, size, own=own))
    whole = abstract(put_batch(batch, session.mesh, (*forward.rows, *reads)))

    def args(about: tuple, one: Batch) -> tuple:  # compiles `adapt`, if it is not there
        where = adapt.lower(*about).compile().output_shardings
        return params, rules.placed(adapt.eval_shape(*about), where), one

    for length in _eval_lengths(splits, session.edges):
        resized = _with_length(whole, length)
        conditions = {name: resized[name] for name in reads if name in resized}
        about, one = (params, alpha, conditions), {n: resized[n] for n in forward.rows}
        # announced for each length, because a condition may be made of the tokens
        yield Job("adapt", adapt, conditions, partial(tuple, about))
        yield Job("classify", forward.classify, one, partial(args, about, one))


def _eval_lengths(splits: list[Dataset], edges: tuple[int, ...]) -> list[int]:
    """Return the lengths T of the batches of some splits, each once."""
    found: list[int] = []
    for data in splits:
        own = buckets.cover(edges, data.lengths, data.max_length)
        found += sorted({own[b] for b in buckets.bucket_of(data.lengths, own)})
    return list(dict.fromkeys(found))
