"""The settings of a run: sections, their types and ranges, and how they are loaded.

A method or a loss is only a string here; the package with its table resolves the name.
Neither these tables nor jax are imported here; only `loading` imports ml-collections.
"""

from hypelora_jax.config.settings import SECTIONS, Settings, from_dict

__all__ = ["SECTIONS", "Settings", "from_dict"]
