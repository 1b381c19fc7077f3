"""Ranks and alphas of single sites: which key takes which site, and what it changes."""

import jax.numpy as jnp
import numpy as np
import pytest
from adapters.test_lora import DIMS, LAYERS, NAMES, random_lora

from hypelora_jax.adapters import lora, patterns
from hypelora_jax.adapters import sites as sites_lib
from hypelora_jax.adapters.sites import Site
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError

FULL = {m: f"bert.{name}" for m, name in NAMES.items()}


def scaling(**fields):
    config = LoraConfig(**fields)
    sites = sites_lib.sites(config, DIMS, LAYERS, NAMES)
    return patterns.scaling(config, sites, LAYERS, FULL)


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("query", {"q"}),
        ("q", {"q"}),
        ("attention.self.query", {"q"}),
        (r"layer\.\d.*query", {"q"}),
        (r"^bert.encoder.*query", {"q"}),
        ("query|value", {"q", "v"}),
        ("down", {"down"}),
        ("output.dense", {"o", "down"}),
        ("dense", {"o", "up", "down"}),
    ],
)
def test_a_key_is_a_canonical_name_or_a_regex_for_the_end_as_in_peft(key, wanted):
    got = scaling(targets="all-linear", rank_pattern={key: 2})
    assert {m for m, r in got.ranks.items() if (r == 2).all()} == wanted
    assert all((r == 8).all() for m, r in got.ranks.items() if m not in wanted)


@pytest.mark.parametrize("key", ["uery", "ayer.0.attention.self.query", "layer.0", "x"])
def test_a_key_that_matches_no_site_is_refused_with_the_sites(key):
    for field in ("rank_pattern", "alpha_pattern"):
        with pytest.raises(UserError) as caught:
            scaling(layers=(1, 2), **{field: {"query": 2, key: 3}})
        assert str(caught.value) == (
            f"config.lora.{field} has {key!r}, which matches no adapted site; "
            "expected the name of one of them, or a regular expression for it: q "
            "(bert.encoder.layer.1.attention.self.query), v "
            "(bert.encoder.layer.1.attention.self.value), in layers 1, 2"
        )
    with pytest.raises(UserError, match=r"lora.rank_pattern '\(' is not a regular"):
        scaling(rank_pattern={"(": 2})


def test_the_first_key_that_matches_gives_the_value():
    first = {r"layer\.1\..*query": 2, "query": 4}
    assert scaling(rank_pattern=first).ranks["q"].tolist() == [4, 2, 4, 4]
    other = dict(reversed(first.items()))
    assert scaling(rank_pattern=other).ranks["q"].tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("rslora", [False, True])
def test_scales_by_hand(rslora):
    got = scaling(
        rank=16,
        alpha=8,
        rslora=rslora,
        layers=(0, 2),
        rank_pattern={"query": 4},
        alpha_pattern={r"layer\.2\..*": 6},
    )
    assert got.rank == 16 and got.ranks["q"].tolist() == [4, 0, 4, 0]
    q, v = ([4, 3], [2, 1.5]) if rslora else ([2, 1.5], [0.5, 0.375])
    np.testing.assert_array_equal(got.scale["q"], [q[0], 0, q[1], 0])
    np.testing.assert_array_equal(got.scale["v"], [v[0], 0, v[1], 0])


def test_equal_sites_need_one_number_and_no_mask():
    assert scaling() == patterns.Scaling(1.0, 8, {})
    assert scaling(rank_pattern={"q": 4, "v": 4}) == patterns.Scaling(2.0, 4, {})
    even = scaling(rank_pattern={"q": 4}, alpha_pattern={"q": 4})
    assert even.scale == 1.0 and even.rank == 8 and even.ranks["q"].tolist() == [4] * 4


def test_masked_and_folded_factors_give_each_sites_own_delta():
    of = {"q": Site(6, 6, (3, 1)), "v": Site(6, 6, (0,))}
    ranks = {"q": np.array([9, 1, 9, 2]), "v": np.array([3, 9, 9, 9])}
    scale = {"q": np.array([0, 0.5, 0, 2.0]), "v": np.array([3.0, 0, 0, 0])}
    tree = random_lora(of)
    masked = lora.masked(tree, of, ranks)
    assert (masked["v"]["a"] == tree["v"]["a"]).all(), "it has the whole rank"
    placed = lora.fold(lora.place([(of, masked)], LAYERS), scale)
    for module, row, layer in (("q", 0, 3), ("q", 1, 1), ("v", 0, 0)):
        r, s = ranks[module][layer], scale[module][layer]
        f = {n: np.asarray(x[row]) for n, x in tree[module].items()}
        wanted = s * f["a"][:, :r] @ f["b"][:r]
        got = placed[module]["a"][layer] @ placed[module]["b"][layer]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        assert not placed[module]["a"][layer][:, r:].any()
        assert not placed[module]["b"][layer][r:].any()
    several = lora.repeated(lora.place([(of, masked)], LAYERS), 2)
    folded = lora.fold(several, scale)  # with an axis of conditions
    np.testing.assert_array_equal(folded["q"]["b"][:, 1], placed["q"]["b"])


def test_one_scale_is_folded_as_a_number():
    tree = {"q": {"a": jnp.ones((2, 3, 1)), "b": jnp.ones((2, 1, 3))}}
    assert (lora.fold(tree, 0.5)["q"]["b"] == 0.5).all()
    assert lora.masked(tree, {}, {}) is tree
