"""Settings of every test: 8 CPU devices, no silent broadcasting between ranks.

Warnings are errors: see pyproject.toml. JAX_PLATFORMS stays as the user set it. Tests
compile hundreds of small programs and run each a few times, so XLA is told to spend
less on optimising them: that halves the time of the suite.
"""

import functools
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
import pytest  # noqa: E402
import reliability  # noqa: E402
from absl import logging as absl_logging  # noqa: E402

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
        worker = hasattr(config, "workerinput")  # of pytest-xdist
        config.pluginmanager.register(reliability.Reliability(path, worker))


@pytest.fixture(autouse=True)
def _own_verbosity():
    """What a command sets for its process does not reach the next test."""
    logger = absl_logging.get_absl_logger()
    before, level = absl_logging.get_verbosity(), logger.level
    yield
    if absl_logging.get_verbosity() != before:
        absl_logging.set_verbosity(before)
        logger.setLevel(level)


# Files that take longest, first: else one worker ends alone with the last of them.
LONG = (
    "faults/test_fuzz.py",
    "train/test_optimum.py",
    "sharding/test_equal.py",
    "test_docs_run.py",
    "train/test_resume.py",
    "test_extending.py",
    "test_given.py",
    "run/test_old_runs.py",
    "train/test_peers.py",
    "test_wheel.py",
    "test_faults.py",
    "parity/test_training.py",
    "train/test_step.py",
    "train/test_losses.py",
    "sharding",
    "test_notebooks.py",
    "experiments/test_reproduce.py",
    "evaluate/test_derivation.py",
    "inference",
    "test_runs.py",
    "exchange",
    "train/test_ensembles.py",
    "calibration/test_bootstrap.py",
    "test_conditions.py",
    "oracle/test_peft.py",
    "oracle/test_golden.py",
    "interop/test_peft.py",
    "evaluate",
    "plan",
)


def pytest_collection_modifyitems(items):
    def rank(item) -> int:
        path = item.path.as_posix()
        found = [i for i, name in enumerate(LONG) if f"tests/{name}" in path]
        return found[0] if found else len(LONG)

    items.sort(key=rank)


@pytest.fixture(scope="module")
def load_once():
    """Loads a run only once for the same options, for tests of one module."""
    from hypelora_jax.inference import predictor  # local: not all tests need it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "load", functools.cache(predictor.load))
        yield
