"""What each loss claims to be minimal at, and the best table of logits for it.

A claim is a config and a map from the model's probabilities (at the loss's own
temperature) back to the true ones, written from the stationarity of the expected loss:
it shares no code with the losses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypelora_jax.calibration.arrays import total
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.objectives import training_loss
from hypelora_jax.objectives.classification import class_loss
from hypelora_jax.train.optimizer import loss_temperature

STEPS = 2500


class Claim(NamedTuple):
    config: LossConfig
    truth: Callable[[np.ndarray], np.ndarray]  # probabilities at the minimum -> true
    proper: bool = True


def same(q_NY):
    return q_NY


def unsmoothed(q_NY):
    return (q_NY - 0.1 / q_NY.shape[1]) / 0.9


def _from_focal(q_NY, gamma_NY):
    """Charoenphakdee et al. (2021): p_k is proportional to q_k / phi(q_k)."""
    rest = 1 - q_NY
    phi = rest**gamma_NY - gamma_NY * rest ** (gamma_NY - 1) * q_NY * np.log(q_NY)
    return q_NY / phi / (q_NY / phi).sum(1, keepdims=True)


def from_focal(q_NY):
    return _from_focal(q_NY, 3.0)


def from_flsd(q_NY):
    return _from_focal(q_NY, np.where(q_NY < 0.2, 5.0, 3.0))


def unpenalised(q_NY):
    """-p_k / q_k + b (log q_k + 1) is the same for all k, and p sums to 1; b = 0.1."""
    entropy = -(q_NY * np.log(q_NY)).sum(1, keepdims=True)
    return q_NY * (1 + 0.1 * (np.log(q_NY) + entropy))


CLAIMS = {
    "cross_entropy": Claim(LossConfig(), same),
    "fixed": Claim(LossConfig(temperature=2.0), same),
    "learned": Claim(LossConfig(temperature="learned"), same),
    "annealed": Claim(LossConfig(temperature=4.0, anneal="geometric"), same),
    "soft": Claim(LossConfig(labels="soft"), same),
    "brier": Claim(LossConfig(name="brier"), same),
    "brier_soft": Claim(LossConfig(name="brier", labels="soft"), same),
    "mmce": Claim(LossConfig(penalty="mmce"), same),
    "soft_ece": Claim(LossConfig(penalty="soft_ece"), same),
    "margin": Claim(LossConfig(penalty="margin"), same),
    "smoothing": Claim(LossConfig(smoothing=0.1), unsmoothed, False),
    "focal": Claim(LossConfig(name="focal"), from_focal, False),
    "flsd53": Claim(LossConfig(name="flsd53"), from_flsd, False),
    "confidence": Claim(LossConfig(penalty="confidence"), unpenalised, False),
}


def expected_rows(config, probs_KY, share_K):
    """(kind, label, weight): the population, each pair counted by its probability."""
    kinds, classes = probs_KY.shape
    if config.labels == "soft":
        return np.arange(kinds), probs_KY, share_K
    kind, label = np.indices((kinds, classes)).reshape(2, -1)
    return kind, label, (share_K[:, None] * probs_KY).ravel()


def best_table(config, probs_KY, share_K):
    """Logits (K, Y), divided by the loss's own temperature, and T, by Adam in float64.

    One row of free logits for each kind of example: nothing but the loss is tried.
    """
    loss = class_loss(config)
    kind, label, weight = map(jnp.asarray, expected_rows(config, probs_KY, share_K))
    anneal = loss_temperature(config, STEPS)
    tx = optax.adam(optax.cosine_decay_schedule(0.05, STEPS))

    def mean_loss(tree, step):
        own = tree["loss"] if anneal is None else {"temperature": anneal(step)}
        loss_N = loss.apply(own, tree["table"][kind], label, weight)
        return total(loss_N, weight)

    def body(carry, step):
        tree, opt_state = carry
        gradient = jax.grad(mean_loss)(tree, step)
        updates, opt_state = tx.update(gradient, opt_state, tree)
        return (optax.apply_updates(tree, updates), opt_state), None

    start = {"table": jnp.zeros(probs_KY.shape), "loss": loss.init(jax.random.key(0))}
    run = jax.jit(
        lambda tree: jax.lax.scan(body, (tree, tx.init(tree)), np.arange(STEPS))
    )
    tree = run(start)[0][0]
    t = training_loss.temperature_of(tree["loss"])
    if config.anneal == "none" and config.temperature != "learned":
        t = config.temperature
    return np.asarray(tree["table"]) / t, t
