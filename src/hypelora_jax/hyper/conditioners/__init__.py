"""Conditioners give the vectors that the hyper-network reads, one file for each source.

`joins` puts the vectors of all sources beside the descriptions of the sites.
"""

from collections.abc import Callable
from typing import NamedTuple

from hypelora_jax.config.settings import Settings
from hypelora_jax.types import Conditioner


class Sizes(NamedTuple):
    """What conditioners need to know of the network, the model and the data.

    A size is 0 where there is no such thing.
    """

    slots: int = 0  # S of the hyper-network
    vectors: int = 0  # C of the vectors that come with the data
    tasks: int = 0  # K, the tasks of a set of tasks
    hidden: int = 0  # D of the backbone


BuildConditioner = Callable[[Settings, Sizes], Conditioner]


class Source(NamedTuple):
    """A source of conditions: what builds its conditioner, and what it asks for."""

    build: BuildConditioner
    embeds: bool = False  # it reads embeddings of texts, of the width of the encoder
    members: bool = False  # each member of a hyper-ensemble has a condition of its own
