"""Presets and what follows from sizes."""

from dataclasses import replace

import pytest

from hypelora_jax import families
from hypelora_jax.errors import UserError
from hypelora_jax.families import preset
from hypelora_jax.families.sizes import site_dims


def test_presets_have_their_published_sizes():
    base, large, mini = map(preset, ("roberta_base", "roberta_large", "minilm"))
    assert (base.width, base.layers, base.heads, base.ff) == (768, 12, 12, 3072)
    assert (large.width, large.layers, large.heads, large.ff) == (1024, 24, 16, 4096)
    assert (mini.width, mini.layers, mini.heads, mini.ff) == (384, 6, 12, 1536)
    for config in (base, mini):
        assert families.of(config).max_tokens(config) == 512


def test_site_dims():
    dims = site_dims(preset("tiny"))
    assert dims["q"] == dims["o"] == (32, 32)
    assert dims["up"] == (32, 64) and dims["down"] == (64, 32)
    assert list(dims) == ["q", "k", "v", "o", "up", "down"]


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(UserError, match="no preset 'huge'.*roberta_base.*tiny"):
        preset("huge")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("family", "gpt2", "family is 'gpt2'; expected one of roberta, bert"),
        ("act", "swish", "activation is 'swish'; expected one of gelu"),
        ("heads", 5, "5 heads do not divide the width 32"),
    ],
)
def test_a_config_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        families.of(replace(preset("tiny"), **{field: value}))
