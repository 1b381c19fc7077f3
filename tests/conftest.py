"""Settings of every test: 8 CPU devices, no silent broadcasting between ranks.

Warnings are errors: see pyproject.toml. JAX_PLATFORMS stays as the user set it. Tests
compile hundreds of small programs and run each a few times, so XLA is told to spend
less on optimising them: that halves the time of the suite.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# One test's programs serve the next one's, in this process and in those it starts.
CACHE = Path(tempfile.gettempdir()) / f"hypelora_test_xla_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import reliability  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--reliability",
        metavar="FILE",
        help="write a table of the tests marked `fault` there",
    )


def pytest_configure(config):
    if path := config.getoption("--reliability"):
        config.pluginmanager.register(reliability.Reliability(path))
