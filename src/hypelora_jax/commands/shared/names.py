"""Check that tables have the names in the settings of a run, before it starts."""

import dataclasses
import operator
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from hypelora_jax import families, hyper, model, objectives
from hypelora_jax.config.adapter_sections import ConditionConfig
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.sources import SOURCES
from hypelora_jax.errors import UserError, choose
from hypelora_jax.evaluate import averaging
from hypelora_jax.hyper.conditioners.descriptions import SITES
from hypelora_jax.hyper.conditioners.joins import JOINS
from hypelora_jax.objectives import losses, penalties
from hypelora_jax.objectives.regression import LOSSES as LOSSES_OF_NUMBERS
from hypelora_jax.run import metric_writers

AUTO = "auto"  # chooses the entry that fits the data
_FIRST: dict[str, Any] = {AUTO: None}  # a ChainMap lists its last table first
# The path of each field with a name, and the table that resolves the name.
TABLES: dict[str, Mapping[str, Any]] = {
    "method": model.METHODS,
    "hyper.cond": SITES,
    "condition.source": hyper.CONDITIONERS,
    "condition.join": JOINS,
    "head.kind": ChainMap(families.HEADS, _FIRST),
    "loss.objective": ChainMap(objectives.OBJECTIVES, _FIRST),
    "loss.name": ChainMap(LOSSES_OF_NUMBERS, losses.LOSSES, _FIRST),
    "loss.penalty": penalties.PENALTIES,
    "data.source": SOURCES,
    "log.writers": metric_writers.WRITERS,
    "uncertainty.kind": averaging.KINDS,
}

# Where the names are of a field whose text has several.
SEVERAL = {"condition.source": "condition.sources"}


def check(settings: Settings) -> None:
    """Check all names, and that the method can give the kind of uncertainty.

    If `loss.objective` is not "auto", `loss.name` is not checked here, because an
    objective may define its own losses and resolves their names itself.

    Raises:
      UserError: a check fails; the message names the field and the allowed names.
    """
    for path, table in TABLES.items():
        if path != "loss.name" or settings.loss.objective == AUTO:
            value = operator.attrgetter(SEVERAL.get(path, path))(settings)
            for name in value if isinstance(value, tuple) else (value,):
                choose(table, name, path)
    hyper.sources(settings.condition)
    averaging.check_kind(settings)
    _check_conditions(settings)
    _check_packing(settings)


def _check_conditions(settings: Settings) -> None:
    """Refuse settings of conditions that nothing would read."""
    config, column = settings.condition, settings.data.condition
    blank = ConditionConfig()
    if families.names(settings.head):  # the encoder embeds the names of labels, too
        config = dataclasses.replace(config, encoder=blank.encoder)
    if config == blank and not column:
        return
    if model.method(settings.method).network is None:
        raise UserError(
            "config.condition and data.condition set what a hyper-network reads, but "
            f"method={settings.method} has no hyper-network; leave them out"
        )
    if config.source == blank.source:
        raise UserError(
            "config.condition or data.condition is set, but "
            f"condition.source={config.source} reads no conditions; expected "
            "condition.source=given or another, or none of these fields"
        )


def _check_packing(settings: Settings) -> None:
    """Refuse packing where the examples of a row may need different factors."""
    given = settings.condition.source != ConditionConfig().source
    several = settings.uncertainty.conditions > 1
    if settings.data.packing and (given or several):
        what = f"uncertainty.kind={settings.uncertainty.kind}"
        if given:
            what = f"condition.source={settings.condition.source}"
        raise UserError(
            "config.data.packing puts several examples in a row, which then share "
            f"their factors, but {what} gives them different ones; expected "
            "data.packing=false"
        )
