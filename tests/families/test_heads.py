"""Heads: the first token alone counts, dropout, dtype, shapes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import head

from hypelora_jax import families
from hypelora_jax.errors import UserError
from hypelora_jax.families import preset
from hypelora_jax.families.sequence_head import sequence_head

ROBERTA = preset("tiny")
BERT = replace(ROBERTA, family="bert", pad_id=0)
DISTILBERT = replace(BERT, family="distilbert", type_vocab=0, head_dropout=0.5)
CASES = [(ROBERTA, np.tanh), (BERT, np.tanh), (DISTILBERT, lambda x: np.maximum(x, 0))]


@pytest.mark.parametrize(
    ("config", "act"), CASES, ids=["roberta", "bert", "distilbert"]
)
def test_logits_are_dense_act_then_linear_of_the_first_token(config, act):
    module = head(config, 3)
    params = module.init(jax.random.key(0))
    params["out"]["bias"] = jnp.arange(3.0)
    hidden = jax.random.normal(jax.random.key(1), (2, 4, config.width))
    dense, out = (np.asarray(params[name]["kernel"]) for name in ("dense", "out"))
    wanted = act(np.asarray(hidden)[:, 0] @ dense) @ out + np.arange(3.0)
    logits = module.apply(params, hidden, {})
    np.testing.assert_allclose(logits, wanted, atol=1e-6)
    np.testing.assert_allclose(
        module.apply(params, hidden[0], {}), logits[0], atol=1e-6
    )
    dropped = module.apply(params, hidden, {}, jax.random.key(2))
    assert float(jnp.max(jnp.abs(dropped - logits))) > 1e-3


def test_logits_are_at_least_float32():
    params = head(ROBERTA, 1).init(jax.random.key(0))
    hidden = jnp.ones((2, 4, ROBERTA.width), jnp.bfloat16)
    assert (
        head(ROBERTA, 1, dtype="bfloat16").apply(params, hidden, {}).dtype
        == jnp.float32
    )
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        logits = head(ROBERTA, 1, dtype="float64").apply(double, hidden, {})
        assert logits.dtype == jnp.float64


def test_init_is_hugging_face_s():
    params = head(ROBERTA, 2).init(jax.random.key(0))
    np.testing.assert_allclose(jnp.std(params["dense"]["kernel"]), 0.02, rtol=0.1)
    assert params["out"]["kernel"].shape == (ROBERTA.width, 2)
    assert not params["out"]["bias"].any()


def test_no_outputs_is_one_line():
    with pytest.raises(UserError, match="0 outputs; expected at least 1"):
        sequence_head(families.of(ROBERTA).sequence, ROBERTA, 0)
