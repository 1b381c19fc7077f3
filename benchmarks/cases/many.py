"""Many adapters in one batch of inference: each row its own, in groups, and merged.

There are 32 adapters of rank 8 on q and v, and the batch has 32 rows of 64 tokens. The
rival `one adapter` is the same forward pass with one adapter for all rows, and peft's
is a batch with `adapter_names`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import ours, timing, torch_rival
from benchmarks.case import Case, Options
from benchmarks.rows import Mismatch, Row, of_counts, of_times
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.interop import peft
from hypelora_jax.plan.hlo import parse
from hypelora_jax.train.scoring import forward
from hypelora_jax.types import Adapter, Lora

MODEL, ROWS, TOKENS = "minilm", 32, 64
Way = Callable[[], np.ndarray]
TOLERANCE = 1e-4  # of logits, which are of the order of 1


class Many(NamedTuple):
    """A model, its batch, and adapters with their axis U."""

    model: ours.Ours
    batch: dict[str, np.ndarray]
    own: tuple[Lora, ...]  # compact and unscaled, as they are saved
    factors: Lora  # placed and scaled, a_LUIR


@functools.cache
def many() -> Many:
    """Draw the adapters."""
    model = ours.ours(MODEL)
    parts = model.model.parts

    def draw(i: int) -> Lora:
        chance = np.random.default_rng(i)
        like = model.params["lora"]
        return jax.tree.map(
            lambda x: np.float32(0.05 * chance.normal(size=x.shape)), like
        )

    own = tuple(draw(i) for i in range(ROWS))
    stacked = jax.tree.map(lambda *x: jax.numpy.stack(x, axis=1), *own)
    placed = lora_lib.place([(parts.lora_sites, stacked)], parts.num_layers)
    batch = ours.batch_of(model.config, ROWS, TOKENS)
    return Many(model, batch, own, lora_lib.fold(placed, parts.scale))


def adapter(found: Many, count: int, shuffled: bool = False) -> Adapter:
    """The first `count` adapters, for groups of rows in order, or for rows in any."""
    factors = jax.tree.map(lambda x: x[:, :count], found.factors)
    if count == 1:
        return Adapter(jax.tree.map(lambda x: x[:, 0], factors))
    if not shuffled:
        return Adapter(factors)
    order = np.random.default_rng(0).permutation(ROWS) % count
    order[0] = 0  # as in the other batches, so that the first row can be compared
    return Adapter(factors, jax.numpy.asarray(order, dtype="int32"))


def way(found: Many, count: int, shuffled: bool = False) -> Way:
    """Our logits (B, Y) with `count` adapters, compiled."""
    run = forward(found.model.model, ours.mesh()).classify
    rows = {n: found.batch[n] for n in ("ids", "mask", "types")}
    rows, chosen = jax.device_put(rows), adapter(found, count, shuffled)
    return lambda: np.asarray(run(found.model.params, chosen, rows))


def _check(logits: np.ndarray, others: np.ndarray) -> None:
    apart = float(np.abs(logits - others).max())
    if not apart <= TOLERANCE:
        raise Mismatch(f"logits of {ROWS} adapters differ by {apart:.3g}")


def against_one(
    name: str, count: int, shuffled: bool, options: Options
) -> Iterator[Row]:
    """Several adapters against one for all rows."""
    found = many()
    several, one = way(found, count, shuffled), way(found, 1)
    _check(several()[0], one()[0])  # the first row has the same adapter in both
    ways = {"one adapter": one}
    yield of_times(name, "one adapter", timing.compare(several, ways, options.seconds))


def of_32(options: Options) -> Iterator[Row]:
    """Each row its own adapter, against one adapter and against peft."""
    yield from against_one("many/32_of_32", ROWS, False, options)
    found = many()
    several, theirs = way(found, ROWS), _theirs(found)
    for rival in theirs.values():
        _check(several(), rival())
    result = timing.compare(several, theirs, options.seconds)
    yield of_times("many/32_of_32", "peft adapter_names", result)


def _theirs(found: Many) -> dict[str, Way]:
    """Logits of peft with a list of adapter names, by implementation of attention."""
    th, model = torch_rival.torch(), found.model
    import peft as their_peft

    names = [f"adapter{i}" for i in range(ROWS)]
    batch = torch_rival.inputs(model.config, found.batch)
    del batch["labels"]

    def build(attention: str) -> Way:
        base = torch_rival.bare(model.config, model.params, attention)
        lora = model.settings.lora
        fields = {"r": lora.rank, "lora_alpha": lora.alpha}
        config = their_peft.LoraConfig(target_modules=["query", "value"], **fields)
        own = their_peft.get_peft_model(base, config, adapter_name=names[0])
        for name, factors in zip(names, found.own, strict=True):
            if name != names[0]:
                own.add_adapter(name, config)
            their_peft.set_peft_model_state_dict(own, _tensors(model, factors), name)
        own.eval()

        def run() -> np.ndarray:
            with th.inference_mode():
                return own(**batch, adapter_names=names).logits.numpy()

        return run

    return {name: build(name) for name in torch_rival.ATTENTION}


def _tensors(model: ours.Ours, factors: Lora) -> dict[str, Any]:
    sites, head = model.model.parts.lora_sites, model.params["head"]
    named, _ = peft.to_peft(model.config, [(sites, factors)], head)
    th = torch_rival.torch()
    return {n: th.from_numpy(x) for n, x in named.items() if "lora_" in n}


def merged(options: Options) -> Iterator[Row]:
    """Instructions of the program of a merged model, and of the bare backbone."""
    del options
    found = many()
    model, one = found.model, adapter(found, 1)
    kernels = lora_lib.merge(model.params["backbone"], one.factors)
    params, none = {**model.params, "backbone": kernels}, Adapter({})
    run = forward(model.model, ours.mesh()).classify
    rows = {n: found.batch[n] for n in ("ids", "mask", "types")}
    _check(np.asarray(run(params, none, rows)), way(found, 1)())
    programs = {"merged": params, "bare": {**model.params}}
    counts = {n: _instructions(run, p, none, rows) for n, p in programs.items()}
    two = (counts["merged"], counts["bare"])
    yield of_counts("many/merged", "bare backbone", *two, "instructions")


def _instructions(run: Any, *arguments: Any) -> int:
    program, _ = parse(run.lower(*arguments).compile().as_text())
    return sum(len(lines) for lines in program.values())


CASES = {
    "many/32_of_32": Case(of_32),
    "many/32_in_any_order": Case(
        functools.partial(against_one, "many/32_in_any_order", ROWS, True)
    ),
    "many/8x4": Case(functools.partial(against_one, "many/8x4", 8, False)),
    "many/merged": Case(merged),
}
