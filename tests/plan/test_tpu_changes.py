"""Plans for TPU slices with other settings; test_tpu.py says how to run them.

A file of its own, so that `make soak` compiles its plans beside those of test_tpu.py.
"""

import pytest
from plan.tpu import planned

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

FULL = (
    "--config=paper:size=large,task=qnli,method=full",
    "--config.model.dtype=bfloat16",
    "--config.optim.accumulate=1",
    "--config.data.max_length=512",
    "--config.optim.batch_size=2048",
)


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
