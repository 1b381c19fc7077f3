"""LoRA: sites by name and regex, scale, placement, merge, size of the delta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypelora_jax.adapters import lora
from hypelora_jax.adapters import sites as sites_lib
from hypelora_jax.adapters.deltas import delta_norms, mean_cosine
from hypelora_jax.adapters.sites import Site
from hypelora_jax.config.settings import LoraConfig
from hypelora_jax.errors import UserError

DIMS = {
    "q": (6, 6),
    "k": (6, 6),
    "v": (6, 6),
    "o": (6, 6),
    "up": (6, 10),
    "down": (10, 6),
}
NAMES = {
    "q": "encoder.layer.{layer}.attention.self.query",
    "k": "encoder.layer.{layer}.attention.self.key",
    "v": "encoder.layer.{layer}.attention.self.value",
    "o": "encoder.layer.{layer}.attention.output.dense",
    "up": "encoder.layer.{layer}.intermediate.dense",
    "down": "encoder.layer.{layer}.output.dense",
}
LAYERS = 4


def sites(**fields):
    return sites_lib.sites(LoraConfig(**fields), DIMS, LAYERS, NAMES)


@pytest.mark.parametrize(
    "targets, wanted",
    [
        (("q", "v"), {"q": (0, 1, 2, 3), "v": (0, 1, 2, 3)}),
        (("value", "query"), {"q": (0, 1, 2, 3), "v": (0, 1, 2, 3)}),
        (("attention.output.dense",), {"o": (0, 1, 2, 3)}),
        ("up", {"up": (0, 1, 2, 3)}),
        ("all-linear", dict.fromkeys(DIMS, (0, 1, 2, 3))),
        (r".*layer\.(0|2)\..*\.(query|key)", {"q": (0, 2), "k": (0, 2)}),
    ],
)
def test_targets(targets, wanted):
    got = sites(targets=targets)
    assert {m: s.layers for m, s in got.items()} == wanted
    assert list(got) == [m for m in DIMS if m in got], "canonical order"


def test_layers_to_adapt():
    assert sites(layers=(3, 1))["q"].layers == (3, 1)


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"targets": ("gate",)}, "'gate'"),
        ({"targets": r"nothing\..*"}, "matches no projection"),
        ({"targets": r"(unclosed.*"}, "not a regular expression"),
        ({"layers": (4,)}, "has layer 4; expected 0 to 3, the layers"),
        ({"layers": (1, 1)}, "one or more layers, each given once"),
    ],
)
def test_bad_targets(fields, part):
    with pytest.raises(UserError, match=part.replace("(", r"\(")):
        sites(**fields)


ALL = (0, 1, 2, 3)


@pytest.mark.parametrize(
    "exclude, wanted",
    [
        (("v",), {"q": ALL, "o": ALL, "down": ALL}),
        ("value", {"q": ALL, "o": ALL, "down": ALL}),
        (("output.dense", "query"), {"v": ALL}),
        (r".*layer\.(0|3)\..*", dict.fromkeys(("q", "v", "o", "down"), (1, 2))),
        (r".*layer\.0\..*query", {"q": (1, 2, 3), "v": ALL, "o": ALL, "down": ALL}),
    ],
)
def test_exclude_takes_sites_from_the_targets(exclude, wanted):
    got = sites(targets=("q", "v", "o", "down"), exclude=exclude)
    assert {m: s.layers for m, s in got.items()} == wanted


@pytest.mark.parametrize(
    "exclude, message",
    [
        (("up",), r"exclude \('up',\) matches no target; expected some of q, v, or"),
        (r"layer\..*", "matches no target"),
        (
            ("gate",),
            "config.lora.exclude has 'gate'; expected modules of this model: q",
        ),
        ("all-linear", "exclude 'all-linear' leaves no target"),
        ("(", r"config.lora.exclude '\(' is not a regular"),
    ],
)
def test_an_exclusion_of_nothing_or_of_everything_is_refused(exclude, message):
    with pytest.raises(UserError, match=message):
        sites(exclude=exclude)


def test_scale_by_hand():
    assert lora.scale(alpha=8, rank=16) == 0.5
    assert lora.scale(alpha=8, rank=16, rslora=True) == 2.0


def test_init_has_zero_delta_and_peft_spread():
    site = Site(400, 300, (0, 1, 2))
    tree = lora.init(jax.random.key(0), {"q": site}, 8)
    a = np.asarray(tree["q"]["a"])
    assert a.shape == (3, 400, 8) and not tree["q"]["b"].any()
    assert np.abs(a).max() <= 1 / 20 and np.isclose(
        a.std(), 1 / 20 / np.sqrt(3), rtol=0.03
    )


def random_lora(of, seed=0, rank=3):
    keys = iter(jax.random.split(jax.random.key(seed), 2 * len(of)))
    return {
        m: {
            "a": jax.random.normal(next(keys), (len(s.layers), s.d_in, rank)),
            "b": jax.random.normal(next(keys), (len(s.layers), rank, s.d_out)),
        }
        for m, s in of.items()
    }


def test_place_selects_rows_and_leaves_the_rest_zero():
    hyper, static = (
        {"q": Site(6, 6, (2, 0))},
        {"q": Site(6, 6, (1,)), "up": Site(6, 10, (3,))},
    )
    made, fixed = random_lora(hyper, 1), random_lora(static, 2)
    placed = lora.place([(hyper, made), (static, fixed)], LAYERS)
    for f in ("a", "b"):
        assert (placed["q"][f][2] == made["q"][f][0]).all()
        assert (placed["q"][f][0] == made["q"][f][1]).all()
        assert (placed["q"][f][1] == fixed["q"][f][0]).all()
        assert not placed["q"][f][3].any() and not placed["up"][f][:3].any()


def test_place_gives_each_row_its_own_gradient_once():
    of = {"q": Site(6, 6, (2, 0))}

    def total(made):
        return sum(
            jnp.sum(x) for x in jax.tree.leaves(lora.place([(of, made)], LAYERS))
        )

    grads = jax.grad(total)(random_lora(of))
    assert all((g == 1).all() for g in jax.tree.leaves(grads))


def test_merge_adds_the_product_to_the_kernel():
    tree = random_lora({"v": Site(6, 6, tuple(range(LAYERS)))})
    kernel = jax.random.normal(jax.random.key(9), (LAYERS, 6, 6))
    params = {"layers": {"v": {"kernel": kernel, "bias": jnp.zeros((LAYERS, 6))}}}
    merged = lora.merge(params, tree)["layers"]["v"]["kernel"]
    for layer in range(LAYERS):
        delta = np.asarray(tree["v"]["a"][layer]) @ np.asarray(tree["v"]["b"][layer])
        np.testing.assert_allclose(merged[layer], kernel[layer] + delta, atol=1e-5)


def test_norms_and_cosines_equal_those_of_dense_deltas():
    of = {"q": Site(6, 6, (0, 1)), "v": Site(6, 6, (1,)), "up": Site(6, 10, (0, 2))}
    tree = random_lora(of)
    dense = {
        m: [np.asarray(f["a"][i]) @ np.asarray(f["b"][i]) for i in range(len(f["a"]))]
        for m, f in tree.items()
    }
    norms = delta_norms(tree)
    for m, deltas in dense.items():
        np.testing.assert_allclose(
            norms[m], [np.linalg.norm(d) for d in deltas], rtol=1e-4
        )
    cosines = []
    for group in (dense["q"] + dense["v"], dense["up"]):
        unit = [d.ravel() / np.linalg.norm(d) for d in group]
        cosines += [
            x @ y for i, x in enumerate(unit) for j, y in enumerate(unit) if i != j
        ]
    np.testing.assert_allclose(mean_cosine(tree), np.mean(cosines), atol=1e-5)


def test_restrict_and_without_cut_the_sites_in_two():
    everything = sites(targets=("q", "up"))
    own = sites_lib.restrict(everything, (3, 1), LAYERS)
    assert own["q"].layers == (3, 1)
    assert sites_lib.without(everything, own)["up"].layers == (0, 2)
    with pytest.raises(UserError, match="contains no layer that has an adapter"):
        sites_lib.restrict(sites(layers=(0,)), (2,), LAYERS)
