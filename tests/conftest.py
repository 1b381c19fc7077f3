"""Settings of every test: 8 CPU devices, no silent broadcasting between ranks.

Warnings are errors: see pyproject.toml. JAX_PLATFORMS stays as the user set it.
"""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
