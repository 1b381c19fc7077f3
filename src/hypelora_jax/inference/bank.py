"""A bank of adapters: several runs of equal shapes on the device, for mixed batches.

The factors and heads of up to U runs are stacked along an axis U, and each row of a
batch has the index of its run's slot. One compiled program answers every mixture of
runs. Putting another run into a slot overwrites the slot in place and compiles nothing.

If there are more runs than slots, the least recently used one leaves the device, and
returns when it is asked for. This is what vLLM does with `max_loras`. Then its factors
and head come from host memory, or are made again: the adapters of described tasks
(`inference.task_adapters`) are too many to keep, and the description is enough.
"""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hypelora_jax import trees
from hypelora_jax.data.batches import Dataset, eval_batches
from hypelora_jax.evaluate import averaging
from hypelora_jax.evaluate.fitted import Answer, Answerer, unanswered
from hypelora_jax.inference.answers import Fields
from hypelora_jax.inference.predictor import Predictor, of_logits
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.train import scoring
from hypelora_jax.train.divergence import NotFinite, check_outputs
from hypelora_jax.types import Adapter, Lora, Params


class Arrays(NamedTuple):
    """What differs between the runs of a bank: of one run, or of U runs stacked.

    Factors are placed and scaled, a_LIR and b_LRO, or a_LUIR and b_LURO. The head's
    leaves are those of the parameter tree, or have a first axis U.
    """

    lora: Lora
    head: Params


_NUMBERS = itertools.count()


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A run of a bank, or one of the adapters that a run makes.

    `arrays` returns its own ones, the same each time; it is called by the thread of the
    bank. `about` is added to each answer.
    """

    bank: "Bank"
    predictor: Predictor
    arrays: Callable[[], Arrays]
    about: Fields = dataclasses.field(default_factory=dict)
    # no other entry of the process has it
    number: int = dataclasses.field(default_factory=partial(next, _NUMBERS))


class Bank:
    """Up to `slots` runs on the device; all methods are called from one thread."""

    def __init__(self, like: Predictor, shapes: Arrays, slots: int):
        """Build an empty bank for runs with the model of `like` and these shapes."""
        fitted, mesh = like.fitted, like.fitted.session.mesh
        self.slots = slots
        self._rows, self._edges = tuple(like.answerers), like.edges
        self._alpha = fitted.alpha  # not read, because the factors have been made
        self._frozen = {"backbone": fitted.frozen["backbone"]}
        self._forward = scoring.forward_of_rows(fitted.session.model, mesh)
        self._slot: OrderedDict[int, int] = OrderedDict()  # by entry, the latest last
        self._put = jax.jit(partial(_put, mesh), donate_argnums=0)
        self._stack: Arrays = jax.jit(partial(_empty, mesh, slots, shapes))()

    def entry(self, predictor: Predictor, arrays: Arrays | None = None) -> Entry:
        """Return the entry of a run, whose own arrays then leave the device."""
        own = arrays or arrays_of(predictor)  # in host memory
        return Entry(self, _without_arrays(predictor), lambda: own)

    def warm(self, entry: Entry) -> dict[tuple[int, int], float]:
        """Compile every shape; return the seconds of a batch, by (rows, T)."""

        def answerer(rows: int) -> Answerer:
            def answer(data: Dataset) -> Answer:
                return Answer(self.logits([entry] * len(data.ids), data, rows))

            return answer

        answerers = {rows: answerer(rows) for rows in self._rows}
        return entry.predictor._replace(answerers=answerers).warm()

    def answer(
        self,
        entries: Sequence[Entry],
        texts: Sequence[tuple[str, ...]],
        data: Dataset,
        rows: int,
    ) -> list[Fields]:
        """Answer texts, whose tokens are in `data`, each with its own entry.

        Args:
          entries: the entry of each text; at most `slots` different ones.
          texts: the texts.
          data: their tokens.
          rows: rows of a batch.

        Raises:
          NotFinite: the outputs or the probabilities for a text are NaN or infinite.
        """
        logits_NY = self.logits(entries, data, rows)
        places: dict[Entry, list[int]] = {}
        for i, entry in enumerate(entries):
            places.setdefault(entry, []).append(i)
        out: list[Fields] = [{}] * len(texts)
        for entry, at in places.items():
            own = [texts[i] for i in at]
            classes = entry.predictor.task.num_outputs  # a bank may have room for more
            try:
                found = of_logits(entry.predictor, own, logits_NY[at, :classes])
            except NotFinite as e:
                bad = np.array(at)[e.rows]
                raise NotFinite(bad, int(bad[0])) from None
            for i, fields in zip(at, found, strict=True):
                out[i] = fields | entry.about
        return out

    def logits(self, entries: Sequence[Entry], data: Dataset, rows: int) -> np.ndarray:
        """Compute raw logits (N, Y) of tokenised texts, each with its own entry.

        Raises:
          NotFinite: the logits of a text are NaN or infinite.
        """
        slot_N = self._resident(entries)
        # index -1 is that of padding rows, which may use any slot
        batches = [
            {**batch, "row": slot_N[batch["index"]]}
            for batch in eval_batches(data, self._edges, rows)
        ]
        own, n = self._stack._asdict(), len(data.ids)
        out = scoring.logits(self._forward, own, self._frozen, self._alpha, batches, n)
        check_outputs(out, data.ids)
        return out

    def _resident(self, entries: Sequence[Entry]) -> np.ndarray:
        """Put the entries into slots, if they have none; return their slots, int32."""
        distinct = dict.fromkeys(entries)
        if len(distinct) > self.slots:
            raise ValueError(
                f"{len(distinct)} runs in one batch; expected at most {self.slots}, "
                "the slots of the bank"
            )
        for entry in distinct:  # so that none of these makes room for another
            if entry.number in self._slot:
                self._slot.move_to_end(entry.number)
        for entry in distinct:
            if entry.number not in self._slot:
                at = self._free()
                self._stack = self._put(self._stack, np.int32(at), entry.arrays())
                self._slot[entry.number] = at
        return np.array([self._slot[entry.number] for entry in entries], np.int32)

    def _free(self) -> int:
        """Return an empty slot, or that of the least recently used entry."""
        unused = set(range(self.slots)) - set(self._slot.values())
        return min(unused) if unused else self._slot.popitem(last=False)[1]


def mixes(predictor: Predictor) -> bool:
    """Whether rows of this run may be in a batch with rows of other runs.

    It must be answered by one pass of one adapter, the same for every text, and the
    backbone must be frozen.
    """
    fitted, session = predictor.fitted, predictor.fitted.session
    single = averaging.single_pass(session.settings) and not session.model.reads
    return single and predictor.tasks is None and "backbone" in fitted.frozen


def entries_of(
    pool: Mapping[str, Predictor], program: Any, slots: int, single: bool
) -> dict[str, Entry]:
    """Build banks for the runs that can share one, and return the entries by name.

    Args:
      pool: runs that share a backbone.
      program: a function of a predictor; runs for which it returns the same value, and
        whose arrays have the same shapes, share a bank.
      slots: the most runs that a bank has on the device at once.
      single: also build banks of a single run, to which others can be added later.
    """
    groups: dict[Any, dict[str, Arrays]] = {}
    for name, one in pool.items():
        if mixes(one):
            arrays = arrays_of(one)
            paths = trees.flatten(arrays._asdict())
            shapes = tuple((path, x.shape, x.dtype) for path, x in paths.items())
            groups.setdefault((program(one), shapes), {})[name] = arrays
    out: dict[str, Entry] = {}
    for group in groups.values():
        if single or len(group) > 1:
            first, arrays = next(iter(group.items()))
            most = slots if single else min(slots, len(group))
            bank = Bank(pool[first], arrays, most)
            out |= {name: bank.entry(pool[name], own) for name, own in group.items()}
    return {name: out[name] for name in pool if name in out}


def arrays_of(predictor: Predictor) -> Arrays:
    """Make the adapter of a run, and copy it and the head to the host."""
    fitted = predictor.fitted
    params = trees.union(fitted.trainable, fitted.frozen)
    adapter: Adapter = fitted.forward.adapt(params, np.asarray(fitted.alpha), {})
    return jax.device_get(Arrays(adapter.factors, params["head"]))


def _without_arrays(predictor: Predictor) -> Predictor:
    """Return the predictor with shapes in place of what is not the backbone."""
    fitted = predictor.fitted

    def shapes(tree: Params) -> Params:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )

    own = {name: x for name, x in fitted.frozen.items() if name != "backbone"}
    frozen = {**shapes(own), "backbone": fitted.frozen["backbone"]}
    trainable = shapes(fitted.trainable)
    fitted = fitted._replace(trainable=trainable, frozen=frozen, answer=unanswered)
    return predictor._replace(fitted=fitted, answerers={})


def _empty(mesh: Mesh, slots: int, shapes: Arrays) -> Arrays:
    def zeros(x: Any, axis: int) -> jax.Array:
        return jnp.zeros((*x.shape[:axis], slots, *x.shape[axis:]), x.dtype)

    lora = jax.tree.map(partial(zeros, axis=1), shapes.lora)
    return _pinned(
        mesh, Arrays(lora, jax.tree.map(partial(zeros, axis=0), shapes.head))
    )


def _put(mesh: Mesh, stack: Arrays, slot: jax.Array, own: Arrays) -> Arrays:
    """Overwrite a slot; the stack is donated, so this happens in place."""
    lora = jax.tree.map(lambda u, x: u.at[:, slot].set(x), stack.lora, own.lora)
    head = jax.tree.map(lambda u, x: u.at[slot].set(x), stack.head, own.head)
    return _pinned(mesh, Arrays(lora, head))


def _pinned(mesh: Mesh, stack: Arrays) -> Arrays:
    """Pin factors to the devices of their kernels; every device has all heads."""
    some = jnp.zeros((), jnp.int32)  # rows have slots, so factors are not cut like rows
    lora = scoring.pinned(Adapter(stack.lora, some), mesh).factors
    return Arrays(lora, jax.lax.with_sharding_constraint(stack.head, replicated(mesh)))
