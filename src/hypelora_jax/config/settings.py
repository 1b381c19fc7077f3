"""All settings of a run as one frozen dataclass, and their form as nested dicts."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from hypelora_jax.config.adapter_sections import (
    BlendConfig,
    ConditionConfig,
    HeadConfig,
    HyperConfig,
    LoraConfig,
    TasksConfig,
)
from hypelora_jax.config.ranges import at_least, check, hints, no_unknown
from hypelora_jax.config.sections import (
    CkptConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    UncertaintyConfig,
)
from hypelora_jax.errors import UserError

Selection = Literal["calibration", "validation", "validation_score", "last", "margin"]

# Fields of older versions, "section.field", and their defaults. If a record or config
# has such a field, its default value is ignored and any other value is refused.
DELETED: dict[str, Any] = {}


@dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    method: str = "hyper_mlp"
    seed: int = 0  # draws weights, dropout, data order and splits
    num_seeds: int = 1  # runs seed, seed + 1, ..., one after the other
    seed_scope: Literal["all", "init"] = "all"  # init: shared data order, dropout
    select_on: Selection = "calibration"
    model: ModelConfig = field(default_factory=ModelConfig)
    hyper: HyperConfig = field(default_factory=HyperConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    blend: BlendConfig = field(default_factory=BlendConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    ckpt: CkptConfig = field(default_factory=CkptConfig)
    log: LogConfig = field(default_factory=LogConfig)
    uncertainty: UncertaintyConfig = field(default_factory=UncertaintyConfig)

    def __post_init__(self):
        check("", self)
        at_least("", self, num_seeds=1, seed=0)
        if self.seed + self.num_seeds * self.uncertainty.samples > 2**31:
            raise UserError(f"config.seed is {self.seed}; expected below 2**31")


SECTIONS: dict[str, type] = {
    name: kind
    for name, kind in hints(Settings).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}


def from_dict(tree: dict[str, Any]) -> Settings:
    """Make settings from nested dicts (a config's `to_dict()` or config.json).

    Raises:
      UserError: a section or field does not exist, or a value is not allowed.
    """
    for name, value in tree.items():
        if name in SECTIONS and not isinstance(value, dict):
            raise UserError(f"config.{name} is {value!r}; expected a section of fields")
    tree = _present(tree)
    no_unknown("config", tree, Settings)
    out = {}
    for name, value in tree.items():
        if name in SECTIONS:
            no_unknown(f"config.{name}", value, SECTIONS[name])
            value = SECTIONS[name](**{k: _freeze(v) for k, v in value.items()})
        out[name] = value
    return Settings(**out)


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _present(tree: dict[str, Any]) -> dict[str, Any]:
    """Convert fields of older versions to their present form."""
    tree = {n: dict(v) if isinstance(v, dict) else v for n, v in tree.items()}
    for path, default in DELETED.items():
        section, _, name = path.rpartition(".")
        values = tree.get(section, {}) if section else tree
        if name in values and (got := _freeze(values.pop(name))) != default:
            raise UserError(
                f"config.{path} is {got!r}, but this version has no such field and "
                f"does what {default!r} did; leave the field out, or use the version "
                "that wrote it"
            )
    hyper = tree.get("hyper", {})
    if hyper.get("cond") == "given":  # formerly, given conditions were a kind of site
        del hyper["cond"]
        width = hyper.get("cond_dim", HyperConfig.cond_dim)
        given = {"source": "given", "join": "replace", "width": width}
        tree["condition"] = {**tree.get("condition", {}), **given}
    return tree
