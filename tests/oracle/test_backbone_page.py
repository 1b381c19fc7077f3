"""The family on docs/extending/backbone.md is the one that transformers has."""

import jax
import numpy as np
import pytest
import snippets
import tiny
import torch
import transformers
from oracle.folders import XLM_ROBERTA as SIZES
from oracle.folders import shake

from hypelora_jax.errors import UserError
from hypelora_jax.interop import base, huggingface


@pytest.fixture
def electra(monkeypatch):
    """The family that the page defines, in the table."""
    snippets.install("docs/extending/backbone.md", monkeypatch)


def model_of(**options):
    config = transformers.ElectraConfig(**SIZES | options, num_labels=3)
    torch.manual_seed(0)
    return shake(transformers.ElectraForSequenceClassification(config)).eval()


def test_the_family_on_the_page(electra, tmp_path):
    model = model_of(embedding_size=32)
    model.save_pretrained(tmp_path / "theirs")
    held = base.resolve(str(tmp_path / "theirs"))
    params = base.load(held, 3, jax.random.key(0))
    ids = np.random.default_rng(0).integers(5, 60, (2, 9)).astype(np.int32)
    batch = {"ids": ids, "mask": np.ones_like(ids, bool), "types": np.zeros_like(ids)}
    hidden = tiny.encoder(held.config).apply(params["backbone"], {}, batch)
    got = tiny.head(held.config, 3).apply(params["head"], hidden, batch)
    huggingface.save_model(tmp_path / "ours", held.config, params)
    auto = transformers.AutoModelForSequenceClassification
    for theirs in (model, auto.from_pretrained(tmp_path / "ours")):
        with torch.no_grad():
            wanted = theirs.eval()(input_ids=torch.from_numpy(ids).long()).logits
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=2e-5)


def test_what_the_page_refuses(electra, tmp_path):
    model_of(embedding_size=16).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="embedding_size=16; expected hidden_size"):
        base.resolve(str(tmp_path))
