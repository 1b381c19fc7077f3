"""Plans for TPU slices: needs libtpu, so `make soak` runs it in .venv-plan.

    make plan && JAX_PLATFORMS=cpu .venv-plan/bin/python -m pytest -m soak \
        tests/plan/test_tpu.py

RoBERTa-large, bfloat16, 32 sequences of 128 tokens a chip, as the paper's MLP writes
its adapter. Each compilation takes about a minute of one core.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
from plan.sizes import network, summed

from hypelora_jax import trees
from hypelora_jax.config.settings import from_dict
from hypelora_jax.plan import program
from hypelora_jax.plan.topology import topology

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
# Tests of a group share their plans, in one process of pytest-xdist.
by_the_paper = pytest.mark.xdist_group("paper")
by_others = pytest.mark.xdist_group("others")

LARGE = (
    "--config=paper:size=large,task=sst2",
    "--config.model.dtype=bfloat16",
    "--config.model.remat=layer",
    "--config.data.max_length=128",
)
FULL = (
    "--config=paper:size=large,task=qnli,method=full",
    "--config.model.dtype=bfloat16",
    "--config.optim.accumulate=1",
    "--config.data.max_length=512",
    "--config.optim.batch_size=2048",
)
CHIPS = {"v5e:2x2": 4, "v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256}


@functools.cache
def planned(*flags: str) -> tuple[int, dict, str]:
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # conftest's
    command = [sys.executable, "-m", "hypelora_jax.cli", "plan", *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


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


@by_the_paper
@pytest.mark.parametrize("name", CHIPS)
def test_roberta_large_fits_and_says_what_it_needs(name):
    found = large(name)
    assert found["bytes_per_device"]["peak"] < found["hbm_bytes"] == 16 * 2**30
    assert 7e12 < found["flops"] < 8e12  # 6 x 303M weights x 4096 tokens, and more
    assert 0.5 < found["mfu"] < 1


@by_the_paper
@pytest.mark.parametrize("name", ["v5p:2x2x1", "v6e:2x2"])
def test_chips_with_a_sparse_core_are_planned_too(name):
    code, found, _ = planned(
        *LARGE, "--config.optim.batch_size=128", f"--topology={name}"
    )
    assert code == 0 and found["fits"]
    assert found["collective_bytes"]["all-reduce"] > 0 < found["hbm_traffic_bytes"]


@by_the_paper
def test_temporaries_do_not_grow_with_the_slice():
    sizes = [large(n)["bytes_per_device"]["temporaries"] for n in CHIPS]
    assert max(sizes[1:]) <= 1.05 * min(sizes[1:])


@by_the_paper
@pytest.mark.parametrize("name", ["v5e:2x2", "v5e:16x16"])
def test_what_is_summed_grows_with_the_adapter_and_not_with_its_network(name, step):
    found = large(name)["collective_bytes"]
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"] <= 1.1 * summed(step) + 64 * 1024
    assert network(step) > 10 * found["all-reduce"]
    assert trees.nbytes(step.arguments[1]) > 100 * found["all-reduce"]


@by_others
def test_a_step_with_fused_attention_needs_less_memory_and_traffic():
    given = ("--config=paper:size=base,task=sst2", "--config.model.dtype=bfloat16")
    given += ("--config.data.max_length=512", "--config.optim.batch_size=64")
    given += ("--config.model.attention_dropout=0.0", "--topology=v5e:2x2")
    found = {}
    for asked in ("xla", "fused", "auto"):
        code, found[asked], _ = planned(*given, f"--config.model.attention={asked}")
        assert code == 0
    assert found["fused"]["bytes_per_device"] == found["auto"]["bytes_per_device"]
    for part in (
        lambda x: x["bytes_per_device"]["temporaries"],
        lambda x: x["hbm_traffic_bytes"],
    ):
        assert part(found["fused"]) < 0.7 * part(found["xla"])


@by_others
def test_full_fine_tuning_at_512_by_512_is_refused_with_two_ways_out():
    code, found, err = planned(*FULL, "--topology=v5e:2x2")
    assert code == 1 and not found["fits"]
    assert "HBM" in found["compiler"] and found["compiler"] in " ".join(err.split())
    assert found["bytes_per_device"]["peak"] > found["hbm_bytes"]
    assert len(found["changes"]) == 2
    for change in found["changes"]:
        code, again, _ = planned(*FULL, "--topology=v5e:2x2", *change["flags"])
        assert code == 0 and again["fits"], change
        assert again["bytes_per_device"] == change["bytes_per_device"]
