"""Training losses: the sum of a main loss and a penalty, one number per example.

The loss is `weight * main + penalty_weight * penalty`, both of logits divided by the
training temperature. A penalty of the whole batch is added to each row, so that the
weighted mean of the rows is the mean main loss plus the penalty. docs/losses.md says
what the batch is under accumulation and on several devices.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from hypelora_jax.config.settings import LossConfig
from hypelora_jax.errors import UserError, choose
from hypelora_jax.objectives.losses import Main, smoothed, widen
from hypelora_jax.objectives.penalties import PENALTIES
from hypelora_jax.types import Init, Key, Loss, Params


def temperature_of(params: Params) -> float:
    """Learned training temperature, > 0, or 1 if no temperature is learned."""
    return float(jnp.exp(params["log_t"])) if "log_t" in params else 1.0


def at_temperature(temperature: jax.Array) -> Params:
    """Subtree that a step adds to the parameters if the temperature anneals."""
    return {"loss": {"temperature": temperature}}


def _init(config: LossConfig) -> Init:
    def init(key: Key) -> Params:
        del key
        return {"log_t": jnp.zeros(())} if config.temperature == "learned" else {}

    return init


def _scaled(config: LossConfig) -> Callable[[Params, jax.Array], jax.Array]:
    """Build the function that divides wide logits by the training temperature."""

    def learned(params: Params, logits_BY: jax.Array) -> jax.Array:
        return widen(logits_BY) * jnp.exp(-params["log_t"])

    def annealed(params: Params, logits_BY: jax.Array) -> jax.Array:
        if "temperature" not in params:
            raise ValueError(
                f"config.loss.anneal is {config.anneal!r}, but this step has no "
                "schedule of the temperature; use hypelora train, or pass "
                "`temperature` to train.step.build_step"
            )
        z_BY = widen(logits_BY)
        return z_BY / params["temperature"].astype(z_BY.dtype)

    def fixed(params: Params, logits_BY: jax.Array) -> jax.Array:
        del params
        return widen(logits_BY) / config.first_temperature

    if config.temperature == "learned":
        return learned
    return fixed if config.anneal == "none" else annealed


def build(
    config: LossConfig,
    table: Mapping[str, Callable[[LossConfig], Main]],
    default: str,
    labels: str,
) -> Loss:
    """Build the training loss of a config from the main losses of an objective.

    A row of weight 0 changes no other row's loss and gets no gradient, even if it
    contains NaN. Without weights, each row has weight 1.

    Args:
      config: see docs/losses.md for the fields.
      table: the main losses of the objective, by name.
      default: the name that "auto" stands for.
      labels: name of the objective's kind of labels, for error messages.

    Raises:
      UserError: the objective does not have the loss, the penalty does not exist, or
        the weight is not above 0.
    """
    name = default if config.name == "auto" else config.name
    if name not in table:
        raise UserError(
            f"config.loss.name is {name!r}, which is not a loss for {labels}; "
            f"expected one of {', '.join(table)}, or auto"
        )
    if not config.weight > 0:
        raise UserError(f"config.loss.weight is {config.weight}; expected above 0")
    main, scaled = table[name](config), _scaled(config)
    penalty = choose(PENALTIES, config.penalty, "loss.penalty")(config)

    def apply(
        params: Params,
        logits_BY: jax.Array,
        label: jax.Array,
        weight_B: jax.Array | None = None,
    ) -> jax.Array:
        if weight_B is None:
            weight_B = jnp.ones(logits_BY.shape[0])
        logits_BY, label = _present(logits_BY, weight_B), _present(label, weight_B)
        z_BY = scaled(params, logits_BY)
        target = label
        if config.smoothing:
            target = smoothed(label, z_BY, config.smoothing)
        loss_B = config.weight * main(z_BY, target)
        if penalty is None:
            return loss_B
        # without smoothing, since calibration is judged by the true labels
        return loss_B + config.penalty_weight * penalty(z_BY, label, weight_B)

    return Loss(_init(config), apply)


def _present(x: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Replace rows of weight 0 by zeros, so that NaN in them cannot spread."""
    real = (weight_B > 0).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(real, x, jnp.zeros_like(x))
