"""Training losses: pure functions from logits and labels to one number an example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypelora_jax.settings import LossConfig
from hypelora_jax.types import Key, Loss, Params, UserError


def total(x_B: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Weighted sum over examples; what a row of weight 0 holds, NaN too, is ignored."""
    x_B = jnp.where(weight_B > 0, x_B, jnp.zeros_like(x_B))
    return jnp.sum(x_B * weight_B.astype(x_B.dtype))


def mean(x_B: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Weighted mean over examples; 0 where all weights are 0.

    A row of weight 0 is as good as absent, even one that holds NaN. Sums over several
    micro-batches are `total`s divided once by the sum of all weights.
    """
    weight = jnp.sum(weight_B.astype(x_B.dtype))
    return total(x_B, weight_B) / jnp.where(weight > 0, weight, 1)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cross_entropy(logits_BY: jax.Array, label: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example, in nats, at least in float32.

    Args:
      logits_BY: unnormalised log-probabilities.
      label: int (B,) classes, or float (B, Y) soft labels whose rows sum to 1.

    Returns:
      (B,); for soft labels the cross-entropy, not the divergence.
    """
    logp_BY = jax.nn.log_softmax(_wide(logits_BY), axis=-1)
    if label.ndim == 2:
        return -jnp.sum(label.astype(logp_BY.dtype) * logp_BY, axis=-1)
    return -jnp.take_along_axis(logp_BY, label[:, None], axis=-1)[:, 0]


def squared_error(logits_BY: jax.Array, label_B: jax.Array) -> jax.Array:
    """Squared error of the first logit, (B,), in the label's unit squared."""
    score_B = _wide(logits_BY)[:, 0]
    return jnp.square(score_B - label_B.astype(score_B.dtype))


def temperature_of(params: Params) -> float:
    """Training temperature that was learned, > 0; 1 where none is."""
    return float(jnp.exp(params["log_t"])) if "log_t" in params else 1.0


def _init_nothing(key: Key | None = None) -> Params:
    del key
    return {}


def _init_log_t(key: Key | None = None) -> Params:
    del key
    return {"log_t": jnp.zeros(())}


def _build_cross_entropy(config: LossConfig) -> Loss:
    """Temperature-scaled cross-entropy; T acts in the loss, saved logits stay raw."""
    if config.temperature == "learned":

        def learned(params: Params, logits_BY: jax.Array, label: jax.Array):
            inverse = jnp.exp(-params["log_t"])
            return config.weight * cross_entropy(_wide(logits_BY) * inverse, label)

        return Loss(_init_log_t, learned)

    def fixed(params: Params, logits_BY: jax.Array, label: jax.Array) -> jax.Array:
        del params
        scaled_BY = _wide(logits_BY) / config.temperature
        return config.weight * cross_entropy(scaled_BY, label)

    return Loss(_init_nothing, fixed)


def _build_mse(config: LossConfig) -> Loss:
    if config.temperature != 1:
        raise UserError(
            f"config.loss.temperature is {config.temperature!r} but the loss mse has "
            "no temperature; wanted 1.0, or loss.name=cross_entropy"
        )

    def apply(params: Params, logits_BY: jax.Array, label_B: jax.Array) -> jax.Array:
        del params
        return config.weight * squared_error(logits_BY, label_B)

    return Loss(_init_nothing, apply)


LOSSES: dict[str, Callable[[LossConfig], Loss]] = {
    "cross_entropy": _build_cross_entropy,
    "mse": _build_mse,
}


def build(config: LossConfig, regression: bool) -> Loss:
    """Loss of a config: `init(key=None)`, `apply(params, logits_BY, label) -> loss_B`.

    Args:
      config: name, temperature (> 0 or "learned") and weight (a factor on the loss).
      regression: the task's labels are numbers; "auto" then means mse.

    Raises:
      UserError: a loss that does not fit the task, or a weight that is not above 0.
    """
    wanted = "mse" if regression else "cross_entropy"
    name = wanted if config.name == "auto" else config.name
    if name not in LOSSES:
        raise UserError(f"config.loss.name is {name!r}; wanted one of {sorted(LOSSES)}")
    if regression != (name == "mse"):
        kind = "numbers" if regression else "classes"
        raise UserError(
            f"config.loss.name is {name!r} but the task's labels are {kind}; "
            f"wanted {wanted} or auto"
        )
    if not config.weight > 0:
        raise UserError(f"config.loss.weight is {config.weight}; wanted above 0")
    return LOSSES[name](config)
