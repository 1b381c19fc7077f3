"""Reads adapter_config.json as peft 0.21 writes it.

Every field is known here and has a use, or has no effect on an adapter that is loaded,
or is refused by its name if it is set.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hypelora_jax.adapters import patterns
from hypelora_jax.config import ranges
from hypelora_jax.config.json_fields import JsonFields

CONFIG = "adapter_config.json"
# Fields that are read below.
_READ = (
    "peft_type task_type r lora_alpha use_rslora lora_dropout rank_pattern "
    "alpha_pattern bias init_lora_weights base_model_name_or_path revision "
    "target_modules exclude_modules layers_to_transform layers_pattern modules_to_save"
).split()
# Fields without an effect here: about the start of training, about peft itself, about
# ties of embeddings, or about layers that no encoder has (fan_in_fan_out).
_UNUSED = (
    "eva_config corda_config lora_ga_config loftq_config inference_mode auto_mapping "
    "peft_version runtime_config megatron_core qalora_group_size ensure_weight_tying "
    "fan_in_fan_out"
).split()
MERGE = "Merge that adapter with peft (merge_and_unload) and use it as --model"
_PLAIN_INITS = ("gaussian", "eva", "orthogonal")  # the base's weights stay the same
# Others have a head whose logits mean something else, such as one label a token.
_TASKS = ("SEQ_CLS", "FEATURE_EXTRACTION")
_HEADS = ("classifier", "score")  # modules that peft saves whole for SEQ_CLS


class PeftConfig(NamedTuple):
    """The fields of an adapter that have a use here, checked."""

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    targets: tuple[str, ...] | str | None  # None: peft's own choice for the family
    exclude: tuple[str, ...] | str
    layers: tuple[int, ...]  # () takes all
    layers_pattern: tuple[str, ...]
    whole: tuple[str, ...]  # ends of the names of modules that are saved whole
    base: str  # "" if it is not named
    revision: str

    def rank_of(self, name: str) -> float:
        """Rank that peft gives to the module of this name."""
        return _first(self.rank_pattern, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """Alpha that peft gives to the module of this name."""
        return float(_first(self.alpha_pattern, name, self.alpha))


def _first(pattern: Mapping[str, float], name: str, default: float) -> float:
    """Value of the first key that matches the name, as in peft."""
    found = (x for key, x in pattern.items() if patterns.matches(key, name))
    return next(found, default)


def read(fields: JsonFields) -> PeftConfig:
    """Check the fields of adapter_config.json.

    Raises:
      UserError: the adapter is not plain LoRA, or a field has a wrong value.
    """
    _check_kind(fields)
    # peft's default is for a field that is missing; it cannot read null either
    alpha = fields.number("lora_alpha") if "lora_alpha" in fields.values else 8.0
    whole = fields.texts("modules_to_save", ())
    _check_regexes(fields, "modules_to_save", whole)
    task = fields.only("task_type", None, *_TASKS)
    return PeftConfig(
        rank=fields.integer("r", 1) if "r" in fields.values else 8,
        alpha=alpha,
        rslora=fields.flag("use_rslora", default=False),
        dropout=fields.rate("lora_dropout", 0.0),
        rank_pattern=fields.patterns("rank_pattern"),
        alpha_pattern=fields.patterns("alpha_pattern"),
        targets=_names(fields, "target_modules", None),
        exclude=_names(fields, "exclude_modules", ()),
        layers=fields.integers("layers_to_transform", ()),
        layers_pattern=_layers_pattern(fields),
        whole=(*whole, *(_HEADS if task == _TASKS[0] else ())),
        base=fields.text("base_model_name_or_path", ""),
        revision=fields.text("revision", ""),
    )


def _check_kind(fields: JsonFields) -> None:
    """Check that an adapter is plain LoRA."""
    fields.read("peft_type", lambda x: x == "LORA", "LORA")
    for name, value in fields.values.items():
        if value and name not in (*_READ, *_UNUSED):
            fields.fault(name, "plain LoRA", MERGE)
    if fields.text("bias", "none") != "none":
        fields.fault("bias", '"none", because the backbone is frozen', MERGE)
    start = fields.read(
        "init_lora_weights", lambda x: isinstance(x, bool | str), "true or false", True
    )
    if isinstance(start, str) and start not in _PLAIN_INITS:
        fields.fault(
            "init_lora_weights",
            "plain LoRA, because that start changes the base's weights",
            "Convert the adapter with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)",
        )


def _names(fields: JsonFields, name: str, default: Any) -> Any:
    """A list of names, or one regex."""
    if isinstance(fields.values.get(name), str):
        return fields.regex(name)
    return fields.texts(name, default)


def _layers_pattern(fields: JsonFields) -> tuple[str, ...]:
    """Regexes for what precedes the number of a layer; () if any name may."""
    found = _names(fields, "layers_pattern", ())
    found = (found,) if isinstance(found, str) else found
    _check_regexes(fields, "layers_pattern", found)
    return tuple(text for text in found if text)


def _check_regexes(fields: JsonFields, name: str, texts: Iterable[str]) -> None:
    """Check names that peft makes a part of its own regexes."""
    for text in texts:
        ranges.regex(f"{fields.where}: {name}", text, inside=True)
