"""The encoder agrees with the reference's hidden states and logits (issue 2: 2e-5)."""

import jax
import numpy as np
import pytest
from parity import golden
from tiny import encoder, head

from hypelora_jax.interop.base import load, resolve


@pytest.fixture(scope="module")
def case():
    base = resolve(str(golden.ROOT / "base"))
    params = load(base, golden.INDEX["num_labels"], jax.random.key(0))
    wanted = golden.load(golden.INDEX["encoder"]["file"])
    return base.config, params, golden.batch(), wanted


def test_sizes_are_those_of_the_index(case):
    config, _, _, _ = case
    for ours, theirs in (("width", "hidden"), ("heads",) * 2, ("layers",) * 2):
        assert getattr(config, ours) == golden.INDEX[theirs]
    assert config.vocab == golden.INDEX["vocab"]


def test_hidden_states(case):
    config, params, batch, wanted = case
    hidden = jax.jit(encoder(config).trace)(params["backbone"], {}, batch)
    assert hidden.shape[0] == config.layers + 1
    for i, ours in enumerate(hidden):
        np.testing.assert_allclose(ours, wanted[f"hidden_{i}"], rtol=0, atol=2e-5)


def test_logits(case):
    config, params, batch, wanted = case
    hidden = jax.jit(encoder(config).apply)(params["backbone"], {}, batch)
    logits = head(config, golden.INDEX["num_labels"]).apply(params["head"], hidden, {})
    assert logits.shape == wanted["logits"].shape
    np.testing.assert_allclose(logits, wanted["logits"], rtol=0, atol=2e-5)
