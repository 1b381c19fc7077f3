"""Settings of every test: 8 CPU devices, no silent broadcasting between ranks.

Warnings are errors: see pyproject.toml. JAX_PLATFORMS stays as the user set it. Tests
compile hundreds of small programs and run each a few times, so XLA is told to spend
less on optimising them: that halves the time of the suite.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
