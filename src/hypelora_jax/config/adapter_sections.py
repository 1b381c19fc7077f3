"""The sections of a config about the adapter: who writes it, and for what.

They are frozen dataclasses like those of `config.sections`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from hypelora_jax.config.ranges import (
    at_least,
    check,
    lora_ranges,
    number_pairs,
    split_names,
)
from hypelora_jax.errors import UserError
from hypelora_jax.files import MODEL, PATH

InitialA = Literal["lora", "reference"]
AMode = Literal["generated", "fixed", "random"]
Init = Literal["zero", "reference"]
Outputs = Literal["full", "shared", "rows", "diagonal", "core"]
Blending = Literal["replace", "add", "multiply"]
Patterns = dict[str, float] | tuple[tuple[str, float], ...]  # name or regex: number
File = Annotated[str, PATH]  # a path; the text says what the field takes


@dataclass(frozen=True)
class HyperConfig:
    """Hyper-network; used by the methods hyper_mlp and hyper_transformer."""

    a: AMode = "generated"
    a_init: InitialA = "lora"  # reference: U(+-1/sqrt(rank)), 9.8 times LoRA's at d=768
    a_input: bool = False  # A is part of the conditioning (METHOD A.1)
    init: Init = "zero"  # zero: the delta is 0 at step 0; reference: torch's defaults
    outputs: Outputs = "full"  # what the network writes of A and B (docs/method.md)
    widths: tuple[int, ...] = (256, 256)  # MLP: hidden widths, any number
    cond: str = "learned"  # kind of the vector of a site
    cond_dim: int = 128  # width of the conditioning vectors
    layers: tuple[int, ...] | None = None  # layers it makes adapters for; None: all
    width: int = 256  # Transformer: model width
    heads: int = 16  # Transformer only
    depth: int = 2  # Transformer only: layers
    ff: int = 2048  # Transformer only: feed-forward width
    dropout: float = 0.1  # Transformer only

    def __post_init__(self):
        check("hyper", self)
        at_least("hyper", self, cond_dim=1, width=1, heads=1, depth=1, ff=1, dropout=0)
        if not self.widths or min(self.widths) < 1:
            raise UserError(
                f"config.hyper.widths is {self.widths}; expected widths of at least 1"
            )
        needed = {"a": "generated", "init": "zero"}
        for name, value in needed.items():
            if self.outputs != "full" and (got := getattr(self, name)) != value:
                raise UserError(
                    f"config.hyper.outputs={self.outputs} needs hyper.{name}={value}, "
                    f"but hyper.{name} is {got}; use that, or hyper.outputs=full"
                )


@dataclass(frozen=True)
class ConditionConfig:
    """What the hyper-network reads in addition to the vectors of sites."""

    source: str = "none"  # names of conditioners, joined by +: text+noise
    file: File = ""  # given: .npz of `ids` and `vectors`; "": see data.condition
    width: int = 0  # C. given: 0 is C of the first vector; task, noise: 0 is 64
    standardise: bool = False  # given, text, set: mean 0 and deviation 1 on train
    join: str = "concat"  # how vectors join those of the sites
    distinct: int = 0  # given: vectors in train, which hypelora plan cannot count
    encoder: Annotated[str, MODEL] = "minilm"  # text, set: embeds the texts; frozen
    dropout: float = 0.0  # on the vectors, in training
    jitter: float = 0.0  # deviation of Gaussian noise on the vectors, in training
    whiten: bool = False  # text: shrink what differs between wordings of one task
    sign: int = 0  # text: layers that tell the sign of logits, negative for "not"
    sentences: int = 16  # set: unlabelled sentences of a task
    pooling: Literal["mean", "attention"] = "mean"  # set: how sentences are joined

    def __post_init__(self):
        check("condition", self)
        at_least("condition", self, width=0, distinct=0, jitter=0, sign=0, sentences=1)
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"config.condition.dropout is {self.dropout}; expected 0 to below 1"
            )

    @property
    def parts(self) -> int:
        """The parts, each as wide as the encoder, of the vector of a description.

        The sign reads maxima, minima and means of its layers. What the network reads
        is the last part, the means of the last layer.
        """
        return max(3 * self.sign, 1)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the conditioners whose vectors are joined."""
        return tuple(self.source.split("+"))


@dataclass(frozen=True)
class TasksConfig:
    """A set of tasks that one network learns together (data.source=tasks)."""

    file: File = ""  # the list of tasks, YAML or JSON (docs/tasks.md)
    per_batch: int = 8  # most tasks of a step
    rows: int = 0  # examples of each; 0: optim.batch_size / tasks of a step
    sampling: Literal["size", "weight", "uniform"] = "size"  # how tasks are drawn
    balanced: bool = False  # a task gives equally many rows of each class
    power: float = 0.5  # size: a task of n examples is drawn with weight n^power
    steps: int = 0  # steps of an epoch; 0: the examples of train / optim.batch_size

    def __post_init__(self):
        check("tasks", self)
        at_least("tasks", self, per_batch=1, rows=0, power=0, steps=0)


@dataclass(frozen=True)
class HeadConfig:
    """Head, which computes outputs from the backbone's hidden states."""

    kind: str = "auto"  # auto: the head that fits the data
    width: int = 128  # label_text: width in which texts and labels are compared

    def __post_init__(self):
        check("head", self)
        at_least("head", self, width=1)


@dataclass(frozen=True)
class BlendConfig:
    """Blending of generated and initial factors (METHOD A.6, A.7)."""

    a: Blending = "replace"
    b: Blending = "replace"
    alpha: float = 0.0  # weight of the initial factors at step 0
    anneal: Literal["none", "linear", "reference"] = "none"
    b_init: Literal["zero", "lora"] = "zero"

    def __post_init__(self):
        check("blend", self)
        if not 0 <= self.alpha <= 1:
            raise UserError(f"config.blend.alpha is {self.alpha}; expected 0 to 1")
        if self.b == "multiply" and self.b_init == "zero":
            raise UserError(
                "config.blend.b=multiply with blend.b_init=zero multiplies B by zero, "
                "so the adapter and its gradient stay zero; expected b_init=lora, or "
                "blend.b=replace or add"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Adapter: rank, scale, and the modules that are adapted."""

    rank: int = 8  # r, columns of A and rows of B
    alpha: float = 8.0  # the delta is (alpha / rank) A B
    rslora: bool = False  # scale alpha / sqrt(rank) instead of alpha / rank
    dropout: float = 0.0  # on the adapter's input
    targets: tuple[str, ...] | str = ("q", "v")  # names, or one regex
    layers: tuple[int, ...] | None = None  # adapted layers; None: all
    exclude: tuple[str, ...] | str = ()  # targets to leave out: names, or one regex
    rank_pattern: Patterns = ()  # ranks of single sites, {"query": 4} (docs/lora.md)
    alpha_pattern: Patterns = ()  # alphas of single sites, {"query": 16}

    def __post_init__(self):
        check("lora", self)
        for name in ("rank_pattern", "alpha_pattern"):  # dicts cannot be hashed
            pairs = number_pairs(f"config.lora.{name}", getattr(self, name))
            object.__setattr__(self, name, pairs)
        for name in ("targets", "exclude"):
            object.__setattr__(self, name, split_names(getattr(self, name)))
        lora_ranges(self)
