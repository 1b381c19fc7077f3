"""Hyper-networks write the LoRA factors of the adapted sites from conditioning vectors.

Everything here is a pure function of vectors and parameters. It does not know
the adapted transformer, tasks, files or devices.
"""

from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.adapter_sections import ConditionConfig
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError, choose
from hypelora_jax.hyper.conditioners import Sizes, Source
from hypelora_jax.hyper.conditioners.given import given
from hypelora_jax.hyper.conditioners.instance import instance
from hypelora_jax.hyper.conditioners.joins import joined
from hypelora_jax.hyper.conditioners.noise import noise
from hypelora_jax.hyper.conditioners.nothing import none
from hypelora_jax.hyper.conditioners.sentences import sentences
from hypelora_jax.hyper.conditioners.task import task
from hypelora_jax.hyper.conditioners.text import text
from hypelora_jax.types import Conditioner

# Conditioners by the names in config.condition.source, which + joins.
CONDITIONERS: dict[str, Source] = {
    "none": Source(none, members=True),
    "given": Source(given),
    "task": Source(task),
    "text": Source(text, embeds=True),
    "instance": Source(instance),
    "set": Source(sentences, embeds=True),
    "noise": Source(noise, members=True),
}


def sources(config: ConditionConfig) -> dict[str, Source]:
    """Return the sources that `condition.source` names.

    Raises:
      UserError: a name is not in the table, is there twice, or cannot be in a sum.
    """
    field, names = "condition.source", config.sources
    found = {name: choose(CONDITIONERS, name, field) for name in names}
    if len(found) < len(names) or ("none" in names and len(names) > 1):
        raise UserError(
            f"config.{field} is {config.source!r}; expected one of "
            f"{', '.join(CONDITIONERS)}, or several joined by +, each once and "
            "without none"
        )
    return found


def embeds(config: ConditionConfig) -> bool:
    """Whether a source reads embeddings of texts, of the width of the encoder."""
    return any(source.embeds for source in sources(config).values())


def of_members() -> tuple[str, ...]:
    """Return the sources that give members of a hyper-ensemble their conditions."""
    return tuple(name for name, source in CONDITIONERS.items() if source.members)


def conditioner(settings: Settings, sites: Sites, sizes: Sizes) -> Conditioner:
    """Build the conditioner of a hyper-network that writes these sites.

    `condition.width` is the width of the data's vectors if the data do not say it.

    Raises:
      UserError: `condition.source` is wrong, or a source lacks what it needs.
    """
    found = sources(settings.condition)
    vectors = sizes.vectors or settings.condition.width
    sizes = sizes._replace(vectors=vectors)
    made = {name: own.build(settings, sizes) for name, own in found.items()}
    return joined(settings, sites, sizes.slots, made)
