"""Training losses: a main loss and a penalty as one number an example.

`weight * main + penalty_weight * penalty`, both of logits divided by the training
temperature. A penalty of the whole batch is given to each row, so that the weighted
mean of the rows is the mean main loss plus the penalty; what a batch is under
accumulation and on several devices stands in docs/losses.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypelora_jax.calibration.arrays import share, total
from hypelora_jax.config.settings import LossConfig
from hypelora_jax.errors import UserError
from hypelora_jax.objectives import losses, penalties
from hypelora_jax.objectives.losses import widen
from hypelora_jax.types import Key, Loss, Params

Main = Callable[[jax.Array, jax.Array], jax.Array]  # (logits, label) -> loss_B
# (logits, label, weight_B) -> (B,) or ()
Penalty = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def mean(x_B: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Weighted mean over examples; 0 where all weights are 0.

    A row of weight 0 is as good as absent, even one that holds NaN. Sums over several
    micro-batches are `total`s divided once by the sum of all weights.
    """
    return share(total(x_B, weight_B), jnp.sum(weight_B.astype(x_B.dtype)))


def temperature_of(params: Params) -> float:
    """Training temperature that was learned, > 0; 1 where none is."""
    return float(jnp.exp(params["log_t"])) if "log_t" in params else 1.0


def at_temperature(temperature: jax.Array) -> Params:
    """What a step adds to the parameter tree for a loss whose temperature anneals."""
    return {"loss": {"temperature": temperature}}


def _focal(config: LossConfig) -> Main:
    return lambda z_BY, label: losses.focal(z_BY, label, config.gamma)


LOSSES: dict[str, Callable[[LossConfig], Main]] = {
    "cross_entropy": lambda config: losses.cross_entropy,
    "focal": _focal,
    "flsd53": lambda config: losses.flsd53,
    "brier": lambda config: losses.brier,
    "mse": lambda config: losses.squared_error,
}


def _confidence(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: penalties.confidence(z_BY)


def _margin(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: penalties.margin(z_BY, config.margin)


def _mmce(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: penalties.mmce(
        z_BY, label, weight_B, config.kernel_width
    )


def _soft_ece(config: LossConfig) -> Penalty:
    return lambda z_BY, label, weight_B: penalties.soft_binned_ece(
        z_BY, label, weight_B, config.soft_bins, config.bin_temperature
    )


PENALTIES: dict[str, Callable[[LossConfig], Penalty | None]] = {
    "none": lambda config: None,
    "confidence": _confidence,
    "margin": _margin,
    "mmce": _mmce,
    "soft_ece": _soft_ece,
}


def _init(config: LossConfig) -> Callable[..., Params]:
    def init(key: Key | None = None) -> Params:
        del key
        return {"log_t": jnp.zeros(())} if config.temperature == "learned" else {}

    return init


def _scaled(config: LossConfig) -> Callable[[Params, jax.Array], jax.Array]:
    """`scaled(params, logits_BY)`: wide logits divided by the training temperature."""

    def learned(params: Params, logits_BY: jax.Array) -> jax.Array:
        return widen(logits_BY) * jnp.exp(-params["log_t"])

    def annealed(params: Params, logits_BY: jax.Array) -> jax.Array:
        if "temperature" not in params:
            raise ValueError(
                f"config.loss.anneal is {config.anneal!r} but the parameters hold no "
                "temperature; wanted losses.at_temperature(T of the step) in the tree"
            )
        z_BY = widen(logits_BY)
        return z_BY / params["temperature"].astype(z_BY.dtype)

    def fixed(params: Params, logits_BY: jax.Array) -> jax.Array:
        del params
        return widen(logits_BY) / config.temperature

    if config.temperature == "learned":
        return learned
    return fixed if config.anneal == "none" else annealed


def _refuse_unfit(config: LossConfig, name: str, regression: bool) -> None:
    """UserError for a loss that does not fit the task, or options it does not have."""
    wanted = "mse" if regression else "cross_entropy"
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
    plain = {"temperature": 1, "anneal": "none", "smoothing": 0}
    plain |= {"penalty": "none", "labels": "hard"}
    for field, value in plain.items():
        if regression and (got := getattr(config, field)) != value:
            raise UserError(
                f"config.loss.{field} is {got!r} but the loss mse has no {field}; "
                f"wanted {value}, or a task of classes"
            )


def build(config: LossConfig, regression: bool) -> Loss:
    """Loss of a config.

    `init(key=None) -> params`; `apply(params, logits_BY, label, weight_B=None) ->
    loss_B`. A row of weight 0 changes no other row's loss and gets no gradient, even
    where it holds NaN; no weights mean 1 for each row.

    Args:
      config: see docs/losses.md for the fields.
      regression: the task's labels are numbers; "auto" then means mse.

    Raises:
      UserError: a loss that does not fit the task, or a weight that is not above 0.
    """
    name = config.name
    if name == "auto":
        name = "mse" if regression else "cross_entropy"
    _refuse_unfit(config, name, regression)
    main, scaled = LOSSES[name](config), _scaled(config)
    penalty = PENALTIES[config.penalty](config)

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
            target = losses.smoothed(label, z_BY, config.smoothing)
        loss_B = config.weight * main(z_BY, target)
        if penalty is None:
            return loss_B
        # the labels as they are: calibration is not judged by smoothed ones
        return loss_B + config.penalty_weight * penalty(z_BY, label, weight_B)

    return Loss(_init(config), apply)


def _present(x: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Rows of weight 0 replaced by zeros, so that nothing they hold gets anywhere."""
    real = (weight_B > 0).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(real, x, jnp.zeros_like(x))
