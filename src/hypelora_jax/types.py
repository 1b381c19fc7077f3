"""Names shared by all modules: contracts, trees and the dimension key.

Dimension key (shape suffixes of arrays, einsum letters in lower case):
B batch, T tokens, D width, H heads, K head dim, F feed-forward, V vocabulary,
L layers, R rank, C conditioning, Y classes, M bins, N examples, S conditioning
slots, I and O input and output width of a site.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = dict[str, Any]  # nested dict of arrays
Lora = dict[str, dict[str, jax.Array]]  # {"q": {"a": a_LIR, "b": b_LRO}, ...}
Key = jax.Array  # a typed key, jax.random.key(...)
Batch = Mapping[str, jax.Array]  # see below

# A batch is a dict of arrays; the backbone reads the first three, the loss the rest:
#   "ids"    int32 (B, T)   token ids, padded with the model's pad id
#   "mask"   bool  (B, T)   True where there is a token
#   "types"  int32 (B, T)   segment of each token (0 for RoBERTa)
#   "label"  int32 (B,) classes | float32 (B,) regression | float32 (B, Y) soft labels
#   "weight" float32 (B,)   1 for examples, 0 for padding rows
#   "cond"   float32 (S, C) | (B, S, C)  only with `given` conditioning

MODULES = ("q", "k", "v", "o", "up", "down", "gate")  # canonical order of sites


class Backbone(NamedTuple):
    """Frozen transformer as pure functions.

    `init(key) -> params`; `apply(params, lora, batch, key=None) -> hidden_BTD`;
    `trace(params, lora, batch, key=None) -> hidden_LBTD`, the embeddings' output first,
    so that its leading length is layers + 1. `key=None` switches dropout off.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]
    trace: Callable[..., jax.Array]


class Head(NamedTuple):
    """Task head.

    `init(key) -> params`; `apply(params, hidden_BTD, key=None) -> logits_BY`;
    `features(params, hidden_BTD) -> features_BD`, what the last layer `out` reads.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]
    features: Callable[..., jax.Array]


class Conditioner(NamedTuple):
    """Source of conditioning vectors.

    `init(key) -> params`; `apply(params, batch) -> cond_SC` or `cond_BSC`.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


class HyperNet(NamedTuple):
    """Conditioning vectors to LoRA factors of the adapted layers.

    `init(key) -> params`; `apply(params, cond_SC, alpha, key=None) -> lora` in compact
    form (only the hyper-network's own layers); `slots` is S.
    """

    init: Callable[..., Params]
    apply: Callable[..., Lora]
    slots: int


class Loss(NamedTuple):
    """Per-example loss, in nats for classes.

    `init(key) -> params`, {} or {"log_t"};
    `apply(params, logits_BY, label, weight_B=None) -> loss_B`. The weights matter to a
    penalty that is a statistic of the batch; the mean over rows is the caller's.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


class Calibrator(NamedTuple):
    """Post-hoc calibrator.

    `fit(logits_NY, label_N, weight_N) -> state`; `apply(state, logits_NY) -> probs_NY`.
    """

    fit: Callable[..., Any]
    apply: Callable[..., jax.Array]
