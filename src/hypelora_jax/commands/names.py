"""Names that the settings of a run hold, resolved in their tables before it starts."""

import operator
from collections.abc import Mapping
from typing import Any

from hypelora_jax import model
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.sources import SOURCES
from hypelora_jax.errors import choose
from hypelora_jax.evaluate import averaging
from hypelora_jax.hyper import conditioners
from hypelora_jax.objectives.training_loss import LOSSES, PENALTIES

# The table that resolves a field, by the field's path. "auto" is no entry of a table:
# it is replaced by a name that fits the data.
TABLES: dict[str, Mapping[str, Any]] = {
    "method": model.METHODS,
    "hyper.cond": conditioners.SITES,
    "condition.source": conditioners.SOURCES,
    "loss.name": {"auto": None, **LOSSES},
    "loss.penalty": PENALTIES,
    "data.source": SOURCES,
    "uncertainty.kind": averaging.KINDS,
}


def check(settings: Settings) -> None:
    """Refuse names that no table has, and kinds of uncertainty the method cannot give.

    Raises:
      UserError: names the field and lists the names its table has.
    """
    for path, table in TABLES.items():
        choose(table, operator.attrgetter(path)(settings), f"config.{path}")
    averaging.check_kind(settings)
