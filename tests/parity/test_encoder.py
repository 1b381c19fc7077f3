"""The encoder agrees with the reference's hidden states and logits (issue 2: 2e-5)."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from hypelora_jax.interop.base import load, resolve
from hypelora_jax.models.encoder import encoder
from hypelora_jax.models.heads import head

GOLDEN = Path(os.environ.get("HYPELORA_GOLDEN", "tests/golden"))


@pytest.fixture(scope="module")
def case():
    index = json.loads((GOLDEN / "index.json").read_text())
    base = resolve(str(GOLDEN / "base"))
    params = load(base, index["num_labels"], jax.random.key(0))
    with np.load(GOLDEN / "encoder.npz", allow_pickle=False) as file:
        golden = dict(file)
    ids = golden["input_ids"].astype(np.int32)
    batch = {
        "ids": ids,
        "mask": golden["attention_mask"] != 0,
        "types": np.zeros_like(ids),
    }
    return base.config, params, batch, golden, index


def test_sizes_are_those_of_the_index(case):
    config, _, _, _, index = case
    for ours, theirs in (("width", "hidden"), ("heads",) * 2, ("layers",) * 2):
        assert getattr(config, ours) == index[theirs]
    assert config.vocab == index["vocab"]


def test_hidden_states(case):
    config, params, batch, golden, _ = case
    hidden = jax.jit(encoder(config).trace)(params["backbone"], {}, batch)
    assert hidden.shape[0] == config.layers + 1
    for i, ours in enumerate(hidden):
        np.testing.assert_allclose(ours, golden[f"hidden_{i}"], rtol=0, atol=2e-5)


def test_logits(case):
    config, params, batch, golden, index = case
    hidden = jax.jit(encoder(config).apply)(params["backbone"], {}, batch)
    logits = head(config, index["num_labels"]).apply(params["head"], hidden)
    assert logits.shape == golden["logits"].shape
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=2e-5)
