"""Plans for TPU slices: needs libtpu, so `make soak` runs it in .venv-plan.

    make plan && JAX_PLATFORMS=cpu .venv-plan/bin/python -m pytest -m soak \
        tests/plan/test_tpu.py tests/plan/test_tpu_changes.py

RoBERTa-large, bfloat16, 32 sequences of 128 tokens a chip, as the paper's MLP writes
its adapter. Each compilation takes about a minute of one core.
"""

import pytest
from plan.sizes import network, summed
from plan.tpu import planned

from hypelora_jax import trees
from hypelora_jax.config.settings import from_dict
from hypelora_jax.plan import program
from hypelora_jax.plan.topology import topology

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

LARGE = (
    "--config=paper:size=large,task=sst2",
    "--config.model.dtype=bfloat16",
    "--config.model.remat=layer",
    "--config.data.max_length=128",
)
CHIPS = {"v5e:2x2": 4, "v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256}


def large(name: str) -> dict:
    batch = f"--config.optim.batch_size={32 * CHIPS[name]}"
    code, found, _ = planned(*LARGE, batch, f"--topology={name}")
    assert code == 0 and found["fits"] and found["global_batch"] == 32 * CHIPS[name]
    return found


@pytest.fixture(scope="module")
def step() -> program.Step:
    """The same model, on one fake device: for the sizes of its trees."""
    config = {
        "model": {"path": "roberta-large"},
        "hyper": {"widths": [2048] * 3, "init": "reference", "a_init": "reference"},
        "data": {"source": "tfds", "task": "sst2"},
    }
    return program.build(from_dict(config), topology("cpu-1"))


@pytest.mark.parametrize("name", CHIPS)
def test_roberta_large_fits_and_says_what_it_needs(name):
    found = large(name)
    assert found["bytes_per_device"]["peak"] < found["hbm_bytes"] == 16 * 2**30
    assert 7e12 < found["flops"] < 8e12  # 6 x 303M weights x 4096 tokens, and more
    assert 0.5 < found["mfu"] < 1


@pytest.mark.parametrize("name", ["v5p:2x2x1", "v6e:2x2"])
def test_chips_with_a_sparse_core_are_planned_too(name):
    code, found, _ = planned(
        *LARGE, "--config.optim.batch_size=128", f"--topology={name}"
    )
    assert code == 0 and found["fits"]
    assert found["collective_bytes"]["all-reduce"] > 0 < found["hbm_traffic_bytes"]


def test_temporaries_do_not_grow_with_the_slice():
    sizes = [large(n)["bytes_per_device"]["temporaries"] for n in CHIPS]
    assert max(sizes[1:]) <= 1.05 * min(sizes[1:])


@pytest.mark.parametrize("name", ["v5e:2x2", "v5e:16x16"])
def test_what_is_summed_grows_with_the_adapter_and_not_with_its_network(name, step):
    found = large(name)["collective_bytes"]
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"] <= 1.1 * summed(step) + 64 * 1024
    assert network(step) > 10 * found["all-reduce"]
    assert trees.nbytes(step.arguments[1]) > 100 * found["all-reduce"]
