"""Hyper-networks write the LoRA factors of the adapted sites from conditioning vectors.

Everything here is a pure function of vectors and parameters. It does not know
the adapted transformer, tasks, files or devices.
"""

from collections.abc import Callable

from hypelora_jax.config.settings import Settings
from hypelora_jax.hyper.conditioners import given, none
from hypelora_jax.types import Conditioner

BuildConditioner = Callable[[Settings, int], Conditioner]  # (settings, slots)
# Conditioners by the name in config.condition.source.
CONDITIONERS: dict[str, BuildConditioner] = {"none": none, "given": given}
