"""The choices of every field that has names for values, and checks of fields."""

from dataclasses import fields
from typing import Any

from hypelora_jax.types import UserError

METHODS = ("full", "lora", "lora_frozen_a", "head", "hyper_mlp", "hyper_transformer")
CHOICES = {
    "method": METHODS,
    "seed_scope": ("all", "init"),
    "select_on": ("calibration", "validation", "last"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.remat": ("none", "layer"),
    "hyper.a": ("generated", "fixed", "random"),
    "hyper.a_init": ("lora", "reference"),
    "hyper.init": ("zero", "reference"),
    "hyper.cond": ("learned", "onehot", "given"),
    "blend.a": ("replace", "add", "multiply"),
    "blend.b": ("replace", "add", "multiply"),
    "blend.anneal": ("none", "linear", "reference"),
    "blend.b_init": ("zero", "lora"),
    "loss.name": ("auto", "cross_entropy", "mse"),
    "loss.temperature": None,  # "fixed value" or "learned": checked by LossConfig
    "data.source": ("tfds", "glue_dir", "files", "movie_reviews", "synthetic"),
    "data.on_bad_row": ("error", "skip"),
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


def no_unknown(where: str, got: dict[str, Any], wanted: type) -> None:
    """Refuse names that are no field of the dataclass `wanted`."""
    names = sorted(f.name for f in fields(wanted))
    if unknown := sorted(set(got) - set(names)):
        raise UserError(
            f"{where} has no field {unknown[0]!r}; wanted one of {', '.join(names)}"
        )
