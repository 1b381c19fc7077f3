"""Training steps: ours against torch with peft, and HypeLoRA's against LoRA's."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import ours, processes, timing, torch_rival
from benchmarks.case import Case, Options
from benchmarks.rows import Mismatch, Row, of_times
from hypelora_jax.errors import UserError


class Shape(NamedTuple):
    """A base model and the shape of its batches."""

    model: str
    rows: int
    tokens: int

    @property
    def name(self) -> str:
        """Its name in the name of a row."""
        return f"{self.model.removeprefix('random:')}_{self.rows}x{self.tokens}"


SHAPES = (
    Shape("minilm", 32, 32),
    Shape("minilm", 32, 128),
    Shape("minilm", 8, 512),
    Shape("random:roberta_base", 16, 64),
    Shape("random:roberta_base", 8, 256),
)
COMPILED = "sdpa, torch.compile"
# The published hyper-networks; the MLP has three layers of 2048.
HYPER: dict[str, dict[str, Any]] = {
    "hyper_transformer": {},
    "hyper_mlp_2048": {"hyper": (("widths", (2048, 2048, 2048)),)},
}


@functools.cache
def pair(model: str) -> tuple[ours.Ours, dict[str, Any]]:
    """Our LoRA model, and peft's by its setting, checked once."""
    own = ours.ours(model)
    rivals = {name: torch_rival.adapted(own, name) for name in torch_rival.ATTENTION}
    rivals[COMPILED] = torch_rival.adapted(own, "sdpa")
    for other in rivals.values():
        torch_rival.check_same(own, other)
    torch_rival.compile_layers(rivals[COMPILED])
    return own, rivals


def _loss(step: ours.Step) -> Callable[[], float]:
    return lambda: float(step.run()["loss"])


@functools.cache
def rival(model: str) -> processes.Child:
    """The process in which peft's models do their steps."""
    return processes.Child("-m", "benchmarks.programs.torch_steps", model)


@functools.cache
def settings(model: str, dropout: bool) -> list[str]:
    """The settings of peft's model that may be the fastest, for all shapes.

    Raises:
      Mismatch: one of them computes something else than ours.
      UserError: torch is not installed.
    """
    del dropout  # what is fastest depends on it
    told = rival(model).ask([])
    if "mismatch" in told:
        raise Mismatch(told["mismatch"])
    if "error" in told:
        raise UserError(told["error"])
    return told["settings"]


def against_torch(shape: Shape, dropout: bool, options: Options) -> Iterator[Row]:
    """Ours against the fastest of peft's settings, in a process of its own.

    torch.compile takes long. Where it fails, or is not the fastest, the further shapes
    of the model do without it.
    """
    child, names = rival(shape.model), settings(shape.model, dropout)
    sizes = (*shape[1:], dropout)
    step = ours.step(ours.ours(shape.model), *sizes)
    notes: dict[str, Any] = {"seconds_to_compile": step.seconds_to_compile}
    tried = list(names)
    if COMPILED in names:
        told = child.ask([COMPILED, *sizes, True])
        fault = told["fault"]
        notes |= {"torch_compile": fault or "works", "seconds_of_it": told["seconds"]}
        if fault:
            tried.remove(COMPILED)

    def way(name: str) -> Callable[[], timing.Spent]:
        return lambda: timing.Spent(**child.ask([name, *sizes, False]))

    ways = {name: way(name) for name in tried}
    found = timing.compare(_loss(step), ways, options.seconds)
    if COMPILED in names and found.fastest != COMPILED:
        names.remove(COMPILED)
    kind = "step" if dropout else "step_nodrop"
    yield of_times(f"{kind}/{shape.name}", "torch+peft", found, **notes)


def against_lora(method: str, options: Options) -> Iterator[Row]:
    """HypeLoRA's step against our own LoRA step."""
    base, kind = SHAPES[0], method.removesuffix("_2048")
    sizes = (base.rows, base.tokens, True)
    own = ours.step(ours.ours(base.model, kind, **HYPER[method]), *sizes)
    lora = ours.step(ours.ours(base.model), *sizes)
    found = timing.compare(_loss(own), {"lora": _loss(lora)}, options.seconds)
    name = f"step/{method}_{base.rows}x{base.tokens}"
    yield of_times(name, "lora", found)


CASES = {
    **{
        f"{kind}/{shape.name}": Case(functools.partial(against_torch, shape, dropout))
        for kind, dropout in (("step", True), ("step_nodrop", False))
        for shape in SHAPES
    },
    **{
        f"step/{method}_32x32": Case(functools.partial(against_lora, method))
        for method in HYPER
    },
}
