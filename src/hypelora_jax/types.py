"""Contracts, trees and the dimension key: the names that all rooms share.

A contract is a NamedTuple of pure functions, and each of its fields is typed by a
Protocol here, so that its signature is code and not prose. The functions are closures:
a builder takes the static choices (sizes, settings), and what it returns takes arrays.

Dimension key (shape suffixes of arrays, einsum letters in lower case):
B batch, T tokens, D width, H heads, K head dim, F feed-forward, V vocabulary,
L layers, R rank, C conditioning, Y classes, M bins, N examples, S conditioning
slots, U distinct conditions, I and O input and output width of a site.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Params = dict[str, Any]  # nested dict of arrays
Lora = dict[str, dict[str, jax.Array]]  # {"q": {"a": a_LIR, "b": b_LRO}, ...}; a_LUIR
Key = jax.Array  # a typed key, jax.random.key(...); (B,) where each row has its own
Batch = Mapping[str, jax.Array]  # see below

# A batch is a dict of arrays; the backbone reads the first three, the objective and the
# conditioner the rest:
#   "ids"    int32 (B, T)   token ids, padded with the model's pad id
#   "mask"   bool  (B, T)   True where there is a token
#   "types"  int32 (B, T)   segment of each token (0 for RoBERTa)
#   "label"  int32 (B,) classes | float32 (B,) regression | float32 (B, Y) soft labels
#   "weight" float32 (B,)   1 for examples, 0 for padding rows
# and, only with a conditioner that reads them,
#   "condition" float32 (U, C) | (U, S, C)  U distinct vectors
#   "row"    int32 (B,)     which of the U conditions each row takes; without it the
#                           rows are U groups of equal size, in order

MODULES = ("q", "k", "v", "o", "up", "down", "gate")  # canonical order of sites


class Init(Protocol):
    """Draws the parameters of a part, float32; {} where it has none."""

    def __call__(self, key: Key) -> Params:
        """The part's subtree of the parameter tree."""


class Encode(Protocol):
    """Runs the frozen transformer with an adapter.

    `lora` covers all layers of each adapted module ({}: no adapter) and has its scale
    folded in: a_LIR, b_LRO for all rows, or a_LUIR, b_LURO of U conditions, `row_B` as
    in `Adapter`. `key=None` switches dropout off; keys (B,) give each row a mask that
    depends on no other row. Raises a `UserError` for more tokens than the model has
    positions.
    """

    def __call__(
        self,
        params: Params,
        lora: Lora,
        batch: Batch,
        key: Key | None = None,
        row_B: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states (B, T, D), or those of all layers (L + 1, B, T, D)."""


class Backbone(NamedTuple):
    """A frozen transformer.

    `apply` gives the last hidden states (B, T, D); `trace` gives those of every layer,
    the embeddings' output first, so that its leading length is layers + 1.
    """

    init: Init
    apply: Encode
    trace: Encode


class ReadHidden(Protocol):
    """Reads hidden states (B, T, D), computed in at least float32."""

    def __call__(
        self,
        params: Params,
        hidden_BTD: jax.Array,
        batch: Batch,
        key: Key | None = None,
    ) -> jax.Array:
        """Logits (B, Y); `key=None` switches dropout off."""


class Features(Protocol):
    """What the last layer `out` of a head reads, without dropout."""

    def __call__(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        """Features (B, D), at least float32."""


class Head(NamedTuple):
    """What reads hidden states.

    Its last layer is `out`: `out` of `features` is `apply` without dropout.
    """

    init: Init
    apply: ReadHidden
    features: Features


class Conditions(NamedTuple):
    """The U distinct conditions of a batch, and which of them each row takes.

    `row_B`, int32, numbers the condition of each row; None: the rows are U groups of
    equal size, in the order of the conditions (U = 1: all rows; U = B: one each).
    """

    vectors_USC: jax.Array
    row_B: jax.Array | None = None


class Adapter(NamedTuple):
    """The factors of a batch: one set for all rows, or those of its U conditions.

    `row_B` is that of `Conditions`; None with one set of factors, a_LIR and b_LRO.
    """

    factors: Lora
    row_B: jax.Array | None = None


class Condition(Protocol):
    """Reads the conditions of a batch."""

    def __call__(
        self, params: Params, batch: Batch, key: Key | None = None
    ) -> Conditions:
        """The vectors, and which of them each row takes."""


class Conditioner(NamedTuple):
    """What the hyper-network reads.

    `reads` names the batch keys it needs with the shape of one condition's entry, so
    that data, sharding and export know them; {} where it needs none. `width` is C.
    """

    init: Init
    apply: Condition
    reads: Mapping[str, tuple[int, ...]]
    width: int


class Write(Protocol):
    """Writes LoRA factors from conditioning vectors."""

    def __call__(
        self,
        params: Params,
        cond_SC: jax.Array,
        alpha: jax.Array | float,
        key: Key | None = None,
    ) -> Lora:
        """Compact factors: only the layers that the hyper-network writes, unscaled.

        `alpha` in [0, 1] is the weight of the initial factors. `key=None` switches
        dropout off and gives a `random` A its stored draw.
        """


class HyperNet(NamedTuple):
    """Conditioning vectors to LoRA factors; `slots` is S."""

    init: Init
    apply: Write
    slots: int


class RowLoss(Protocol):
    """The training loss of each row, in nats for classes."""

    def __call__(
        self,
        params: Params,
        logits_BY: jax.Array,
        label: jax.Array,
        weight_B: jax.Array | None = None,
    ) -> jax.Array:
        """Losses (B,); a row of weight 0 changes no other row and gets no gradient.

        The weights matter to a penalty that is a statistic of the batch. The mean over
        rows is the caller's.
        """


class Loss(NamedTuple):
    """Per-example loss; its parameters are {} or {"log_t"}."""

    init: Init
    apply: RowLoss


class Sums(Protocol):
    """Sums the loss of a micro-batch; sums of micro-batches and devices are added."""

    def __call__(
        self,
        model: Any,
        params: Params,
        adapter: Adapter,
        batch: Batch,
        key: Key | None,
    ) -> tuple[jax.Array, jax.Array]:
        """(sum of weight * loss, sum of weights); `model` is a `model.Model`."""


Probabilities = Callable[[np.ndarray], np.ndarray]  # raw logits (N, Y) to probabilities


class UpdateJudge(Protocol):
    """Adds examples to an evaluation."""

    def __call__(
        self,
        state: Any,
        logits_NY: np.ndarray,
        label_N: np.ndarray,
        soft_NY: np.ndarray | None = None,
    ) -> Any:
        """The next state; examples without a label are left out."""


class Judge(NamedTuple):
    """An accumulator for evaluation, mergeable over batches and processes.

    `start() -> state`; `update` adds examples; `merge(left, right) -> state` joins two
    states, left's examples first; `result(state, probabilities) -> metrics` in float64,
    {} where no example had a label.
    """

    start: Callable[[], Any]
    update: UpdateJudge
    merge: Callable[[Any, Any], Any]
    result: Callable[[Any, Probabilities], dict[str, Any]]


class Objective(NamedTuple):
    """What is learned and how it is judged.

    `init` draws the objective's own parameters ({"log_t"} for a learned temperature);
    `reads` names the batch keys of `sums`; `unit` is the metric that models are chosen
    by, the lower the better; `probabilistic` says that outputs are logits of classes,
    so that there are confidences, calibrators and sets.
    """

    init: Init
    reads: tuple[str, ...]
    sums: Sums
    judge: Judge
    unit: str
    probabilistic: bool


class BuildNetwork(Protocol):
    """Builds the hyper-network of a method for the sites it writes."""

    def __call__(
        self, config: Any, blending: Any, sites: Any, rank: int, cond_width: int
    ) -> HyperNet:
        """The network; raises a `UserError` for choices it cannot serve."""


class Network(NamedTuple):
    """A kind of hyper-network: how many slots it reads, and how it is built."""

    slots: Callable[[Any, Any], int]
    build: BuildNetwork


class Method(NamedTuple):
    """What trains, and where the factors come from.

    `trains` are patterns that match the paths of the trainable leaves whole; `network`
    is the hyper-network that writes factors, None where there is none; `adapts` says
    whether there are LoRA factors at all; `lr` is the peak learning rate that configs
    start from (MiniLM, batches of 32).
    """

    trains: tuple[str, ...]
    network: Network | None
    adapts: bool
    lr: float
