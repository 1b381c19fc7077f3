"""The choices of every field that has names for values, and checks of fields."""

from dataclasses import fields
from typing import Any

from hypelora_jax.errors import UserError

METHODS = ("full", "lora", "lora_frozen_a", "head", "hyper_mlp", "hyper_transformer")
# Of the flags of `calibrate` and `predict`, no fields of a config.
CALIBRATORS = (
    "temperature",
    "vector",
    "dirichlet",
    "isotonic",
    "histogram",
    "beta",
    "platt_binner",
)
TO_CALIBRATE = (*CALIBRATORS, "identity")  # identity: back to none
SETS = ("thr", "aps", "raps")
# Of `uncertainty --kind`: what needs no training of its own.
AFTERWARDS = ("mc_dropout", "laplace", "random_a")
ROWS = ("jsonl", "csv", "tsv")
ON_ERROR = ("stop", "skip")
CHOICES = {
    "method": METHODS,
    "seed_scope": ("all", "init"),
    "select_on": ("calibration", "validation", "validation_score", "last"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.remat": ("none", "layer"),
    "hyper.a": ("generated", "fixed", "random"),
    "hyper.a_init": ("lora", "reference"),
    "hyper.init": ("zero", "reference"),
    "hyper.cond": ("learned", "onehot"),
    "blend.a": ("replace", "add", "multiply"),
    "blend.b": ("replace", "add", "multiply"),
    "blend.anneal": ("none", "linear", "reference"),
    "blend.b_init": ("zero", "lora"),
    "loss.name": ("auto", "cross_entropy", "focal", "flsd53", "brier", "mse"),
    "loss.temperature": None,  # a number or "learned": see loss_ranges
    "loss.anneal": ("none", "linear", "geometric"),
    "loss.labels": ("hard", "soft"),
    "loss.penalty": ("none", "confidence", "margin", "mmce", "soft_ece"),
    "data.source": ("tfds", "glue_dir", "files", "movie_reviews", "synthetic"),
    "data.on_bad_row": ("error", "skip"),
    "uncertainty.kind": (
        "none",
        "mc_dropout",
        "deep_ensemble",
        "laplace",
        "hyper_ensemble",
        "random_a",
    ),
    "uncertainty.link": ("mean_field", "probit", "mc"),
    "optim.schedule": ("linear", "cosine", "constant"),
}


def check(section: str, config: Any) -> None:
    """Refuse a field whose value is none of its CHOICES, and lists of other than ints.

    Raises:
      UserError: names the field, the value and the choices.
    """
    for f in fields(config):
        name = f"{section}.{f.name}" if section else f.name
        choices, got = CHOICES.get(name), getattr(config, f.name)
        if choices is not None and got not in choices:
            raise UserError(
                f"config.{name} is {got!r}; wanted one of {', '.join(choices)}"
            )
        of_ints = isinstance(got, tuple) and "int" in str(f.type)
        if of_ints and not all(type(x) is int for x in got):
            raise UserError(f"config.{name} is {got}; wanted whole numbers")


def at_least(section: str, config: Any, **minimum: float) -> None:
    """Refuse fields below their minimum, and ones that are not finite."""
    for name, low in minimum.items():
        got = getattr(config, name)
        if not low <= got < float("inf"):  # NaN fails too
            where = f"{section}.{name}" if section else name
            raise UserError(f"config.{where} is {got}; wanted at least {low}, finite")


def loss_ranges(config: Any) -> None:
    """Refuse numbers of the loss section that mean nothing."""
    t = config.temperature
    number = isinstance(t, int | float) and not isinstance(t, bool)
    if t != "learned" and not (number and 0 < t < float("inf")):
        raise UserError(f"config.loss.temperature is {t!r}; wanted > 0 or learned")
    if config.anneal != "none" and not number:
        raise UserError(
            f"config.loss.anneal is {config.anneal!r} and loss.temperature learned; "
            "wanted the number it starts at, or anneal=none"
        )
    at_least("loss", config, smoothing=0, gamma=0, penalty_weight=0, margin=0)
    at_least("loss", config, soft_bins=1, anneal_share=0)
    at_least("loss", config, temperature_end=1e-3, kernel_width=1e-6)
    at_least("loss", config, bin_temperature=1e-9)
    if not config.smoothing < 1 or config.anneal_share > 1:
        raise UserError(
            "config.loss wants smoothing below 1 and anneal_share of at most 1; got "
            f"{config.smoothing}, {config.anneal_share}"
        )


def optim_ranges(config: Any) -> None:
    """Refuse numbers of the optim section that mean nothing."""
    at_least("optim", config, lr=0, head_lr=0, num_epochs=1, batch_size=1)
    at_least("optim", config, accumulate=1, weight_decay=0, warmup=0, clip=0)
    at_least("optim", config, patience=0, eps=0, b1=0, b2=0, skip_nonfinite=0)
    if max(config.warmup, config.b1, config.b2) > 1 or (
        config.head_lr and not config.lr
    ):
        raise UserError(
            "config.optim wants warmup, b1, b2 of at most 1, and lr above 0 where "
            f"head_lr is; got {config.warmup}, {config.b1}, {config.b2}, {config.lr}"
        )
    if config.batch_size % config.accumulate:
        raise UserError(
            f"config.optim.batch_size is {config.batch_size}, accumulate is "
            f"{config.accumulate}; wanted a batch size divisible by accumulate"
        )


def no_unknown(where: str, got: dict[str, Any], wanted: type) -> None:
    """Refuse names that are no field of the dataclass `wanted`."""
    names = sorted(f.name for f in fields(wanted))
    if unknown := sorted(set(got) - set(names)):
        raise UserError(
            f"{where} has no field {unknown[0]!r}; wanted one of {', '.join(names)}"
        )


def check_kind(settings: Any) -> None:
    """Refuse a kind of uncertainty that the run's hyper-network cannot give."""
    kind, hyper = settings.uncertainty.kind, settings.hyper
    if kind == "random_a":
        fits, wanted = hyper.a == "random", "hyper.a=random"
    elif kind == "hyper_ensemble":
        fits, wanted = hyper.cond == "learned", "hyper.cond=learned"
    else:
        return
    if settings.method not in ("hyper_mlp", "hyper_transformer") or not fits:
        raise UserError(
            f"config.uncertainty.kind={kind} wants {wanted} and method=hyper_mlp or "
            f"hyper_transformer; got hyper.a={hyper.a}, hyper.cond={hyper.cond}, "
            f"method={settings.method}"
        )
