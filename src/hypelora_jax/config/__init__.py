"""Every choice of a run: sections, their types and ranges, and how they are read.

It knows no names of tables: a method or a loss is a string here, resolved where its
table lives. Nothing of jax comes in, and ml-collections stays in `loading`.
"""

from hypelora_jax.config.settings import SECTIONS, Settings, from_dict

__all__ = ["SECTIONS", "Settings", "from_dict"]
