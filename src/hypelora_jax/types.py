"""Types that all packages share: contracts, trees and the dimension key.

A contract is a NamedTuple of pure functions, closures that builders return. A Protocol
in this file gives the type of each field, so that signatures are checked code.

Dimension key (shape suffixes of arrays, einsum letters in lower case):
B batch, T tokens, D width, H heads, K head dim, F feed-forward, V vocabulary,
L layers, R rank, C conditioning, Y classes, M bins, N examples, S conditioning
slots, U distinct conditions, I and O widths of a site, P examples of a packed row.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Params = dict[str, Any]  # nested dict of arrays
# {"q": {"a": a_LIR, "b": b_LRO}, ...}; with U conditions a_LUIR and b_LURO
Lora = dict[str, dict[str, jax.Array]]
Key = jax.Array  # a typed key, jax.random.key(...); (B,) if each row has its own
Batch = Mapping[str, jax.Array]  # see below

# A batch is a dict of arrays; the backbone reads the first three, the objective and the
# conditioner the rest:
#   "ids"    int32 (B, T)   token ids, padded with the model's pad id
#   "mask"   bool  (B, T)   True where there is a token
#   "types"  int32 (B, T)   segment of each token (0 for RoBERTa)
#   "label"  int32 (B,) classes | float32 (B,) regression | float32 (B, Y) soft labels
#   "weight" float32 (B,)   1 for examples, 0 for padding rows
# A packed batch has up to P examples in a row, labels and weights (B, P, ...), and
#   "segment" int32 (B, T)  which example of its row a token belongs to, from 1; else 0
#   "first"  int32 (B, P)   place of each example's first token
# With a conditioner that reads them, a batch also has
#   "condition" float32 (U, C) | (U, S, C)  U distinct vectors
#   "row"    int32 (B,)     each row's condition; without it, rows are U equal groups
#   "which"  int32 (U,)     index of each condition's task;  "task" (B,) of each row's
#   "sentences" float32 (U, k, C)  embeddings of k sentences of each condition's task
#   "pooled" float32 (U, D) states of the bare backbone, which the model adds; U = B
#   "labels" float32 (B, Y, E)  embeddings of the label names of each row's task; zeros
#                           for a class that the task does not have

MODULES = ("q", "k", "v", "o", "up", "down", "gate")  # canonical order of sites
ABSENT = -1e9  # logit of a class that a row's task does not have; its softmax is 0


class Init(Protocol):
    """Draws the float32 parameters of a part; {} if it has none."""

    def __call__(self, key: Key) -> Params:
        """Return the part's subtree of the parameter tree."""


class Encode(Protocol):
    """Runs the frozen transformer with an adapter.

    `lora` covers all layers of each adapted module, with its scale folded in; {} means
    no adapter. Its factors are a_LIR, b_LRO for all rows, or a_LUIR, b_LURO for U
    conditions, with `row_B` as in `Adapter`. `key=None` switches dropout off; keys (B,)
    give each row a mask that does not depend on other rows. Raises a `UserError` if
    there are more tokens than the model has positions.
    """

    def __call__(
        self,
        params: Params,
        lora: Lora,
        batch: Batch,
        key: Key | None = None,
        row_B: jax.Array | None = None,
    ) -> jax.Array:
        """Return hidden states (B, T, D), or (L + 1, B, T, D) for all layers."""


class Backbone(NamedTuple):
    """A frozen transformer.

    `apply` returns the last hidden states (B, T, D). `trace` returns the output of the
    embeddings and then of every layer, (L + 1, B, T, D).
    """

    init: Init
    apply: Encode
    trace: Encode


class ReadHidden(Protocol):
    """Computes logits from hidden states (B, T, D), in at least float32."""

    def __call__(
        self,
        params: Params,
        hidden_BTD: jax.Array,
        batch: Batch,
        key: Key | None = None,
    ) -> jax.Array:
        """Return logits (B, Y), of a packed batch (B P, Y); None: no dropout."""


class Features(Protocol):
    """Computes the input of a head's last layer `out`, without dropout."""

    def __call__(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        """Return features (B, D), at least float32."""


class Head(NamedTuple):
    """A head, which reads hidden states; `reads` names other entries of a batch's rows.

    Without dropout, `apply` is a layer `out` of `features`, or `features` is None.
    """

    init: Init
    apply: ReadHidden
    features: Features | None
    reads: tuple[str, ...] = ()


class Conditions(NamedTuple):
    """The U distinct conditions of a batch, and which of them each row takes.

    Without `row_B`, the rows are U groups of equal size, in the order of the conditions
    (one for all with U = 1, one each with U = B). `sign_U` multiplies their logits.
    """

    vectors_USC: jax.Array
    row_B: jax.Array | None = None
    sign_U: jax.Array | None = None


class Adapter(NamedTuple):
    """The factors of a batch: one set for all rows, or one for each of U conditions.

    `row_B` is as in `Conditions`; it is None for one set of factors, a_LIR and b_LRO.
    """

    factors: Lora
    row_B: jax.Array | None = None


class Condition(Protocol):
    """Reads the conditions of a batch; `key=None` switches dropout and draws off."""

    def __call__(
        self, params: Params, batch: Batch, key: Key | None = None
    ) -> Conditions:
        """Return the vectors, and which of them each row takes."""


class Conditioner(NamedTuple):
    """Provides the vectors that the hyper-network reads, of width C.

    `reads` maps each batch key that it needs to the shape of one condition's entry, so
    that data, sharding and export know them (float32, or int32 of shape ()); {} if it
    needs none. A vector that is the same for all slots has S = 1.
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
        """Return compact, unscaled factors of the layers the hyper-network writes.

        `alpha` in [0, 1] is the weight of the initial factors. `key=None` switches
        dropout off, and a `random` A then takes its stored draw.
        """


class HyperNet(NamedTuple):
    """Turns conditioning vectors into LoRA factors; `slots` is S."""

    init: Init
    apply: Write
    slots: int


class RowLoss(Protocol):
    """Computes the training loss of each row, in nats for classes."""

    def __call__(
        self,
        params: Params,
        logits_BY: jax.Array,
        label: jax.Array,
        weight_B: jax.Array | None = None,
    ) -> jax.Array:
        """Return losses (B,); a row of weight 0 counts nothing and has no gradient."""


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
        """Return (sum of weight * loss, sum of weights) for a `model.Model`."""


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
        """Return the next state; examples without a label are left out."""


class Judge(NamedTuple):
    """An accumulator for evaluation, mergeable over batches and processes.

    `start() -> state`; `update` adds examples; `merge(left, right) -> state` joins two
    states, left's examples first; `result(state, probabilities) -> metrics` in float64,
    {} if no example had a label; `loss` is the one that `unit` names, or NaN.
    """

    start: Callable[[], Any]
    update: UpdateJudge
    merge: Callable[[Any, Any], Any]
    result: Callable[[Any, Probabilities], dict[str, Any]]
    loss: Callable[[Any, Probabilities], float]


class Objective(NamedTuple):
    """What is learned and how it is judged.

    `init` draws the objective's own parameters ({"log_t"} for a learned temperature).
    `reads` names the batch keys that `sums` needs. `unit` is the metric that models are
    chosen by; lower is better. `probabilistic` is True if the outputs are logits of
    classes, so that there are confidences, calibrators and conformal sets. With
    `targets` it learns the adapters in `params["targets"]`, and the head stays.
    """

    init: Init
    reads: tuple[str, ...]
    sums: Sums
    judge: Judge
    unit: str
    probabilistic: bool
    targets: bool = False


class BuildNetwork(Protocol):
    """Builds the hyper-network of a method for the sites it writes."""

    def __call__(
        self, config: Any, blending: Any, sites: Any, rank: int, cond_width: int
    ) -> HyperNet:
        """Return the network; raises a `UserError` for choices it does not support."""


class Network(NamedTuple):
    """A kind of hyper-network: how many slots it reads, and how it is built."""

    slots: Callable[[Any, Any], int]
    build: BuildNetwork


class Method(NamedTuple):
    """What trains, and where the factors come from.

    `trains` are patterns; a leaf is trainable if one of them matches its whole path.
    `network` is the hyper-network that writes factors, or None. `adapts` says whether
    there are LoRA factors at all. `lr` is the peak rate of configs (MiniLM, batch 32).
    """

    trains: tuple[str, ...]
    network: Network | None
    adapts: bool
    lr: float
