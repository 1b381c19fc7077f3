"""Hyper-networks: from conditioning vectors to the LoRA factors of the adapted sites.

Everything here is a pure function of vectors and parameters; the transformer that is
adapted, tasks, files and devices may not come in.
"""

from collections.abc import Callable

from hypelora_jax.config.settings import Settings
from hypelora_jax.hyper.conditioners import given, none
from hypelora_jax.types import Conditioner

BuildConditioner = Callable[[Settings, int], Conditioner]  # (settings, slots)
# What the hyper-network reads, by the name that config.condition.source gives.
CONDITIONERS: dict[str, BuildConditioner] = {"none": none, "given": given}
