"""Vectors of texts are means and extremes of the states of an encoder's layers."""

import jax
import numpy as np
import pytest

from hypelora_jax import families
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base as bases
from hypelora_jax.train.conditioning import text_encoder

ENCODER = "random:tiny"
TEXTS = ("Is it good?", "no", "Say yes unless the film is longer than that other one.")


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_vectors_are_means_or_extremes_and_means_of_the_last_layers(layers):
    base = bases.resolve(ENCODER)
    backbone = families.of(base.config).backbone(base.config)
    params = bases.load(base, 1, jax.random.key(0))["backbone"]
    tokenizer = bases.read_tokenizer(base)
    got = text_encoder.embed(ENCODER, TEXTS, layers)
    assert got.shape == (len(TEXTS), max(1, 3 * layers) * base.config.width)
    assert got.shape[1] == text_encoder.width(ENCODER, layers)
    for text, x in zip(TEXTS, got, strict=True):
        table = Table(np.zeros(1), [text], None, np.full(1, -1, np.int32))
        ids = np.array(tokenizer.encode(table, 128).ids, np.int32)
        batch = {"ids": ids, "mask": np.ones_like(ids, bool), "types": 0 * ids}
        states = np.asarray(backbone.trace(params, {}, batch), np.float64)[:, 0]
        wanted = [
            part
            for x in states[len(states) - layers :]
            for part in (x.max(axis=0), x.min(axis=0), x.mean(axis=0))
        ] or [states[-1].mean(axis=0)]
        wanted = np.concatenate(wanted)
        np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-5)
    alone = np.concatenate([text_encoder.embed(ENCODER, [t], layers) for t in TEXTS])
    np.testing.assert_allclose(alone, got, rtol=1e-4, atol=1e-5)


def test_more_layers_than_the_encoder_has_are_refused():
    with pytest.raises(UserError, match=r"condition.sign is 9, but .* 2 layers"):
        text_encoder.embed(ENCODER, TEXTS, 9)


@pytest.mark.parametrize(
    ("encoder", "one", "other"),
    [
        ("minilm", "Is it good?", "is it GOOD?"),
        ("minilm", "Is it \N{GRINNING FACE}?", "Is it \N{POUTING FACE}?"),
        (ENCODER, "word " * 200 + "a", "word " * 200 + "b"),
    ],
)
def test_descriptions_that_are_the_same_tokens_are_said(encoder, one, other, caplog):
    for texts in ([(one, other), ("no",)], [(one,), (one,)]):
        text_encoder.warn_of_equal(encoder, texts)
        # Both are of one task, or the same text.
        assert "which two tasks have" not in caplog.text
    text_encoder.warn_of_equal(encoder, [(one,), ("no", other)])
    assert caplog.text.count("which two tasks have, as the same text") == 1
    text_encoder.warn_of_equal(encoder, [(one,), ("no", "yes")])
    assert caplog.text.count("which two tasks have") == 1
