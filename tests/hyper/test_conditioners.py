"""Conditioners: their vectors in float64, sums, draws, descriptions and refusals."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sources
import tiny
from sources import SENTENCES, TASKS, WIDTH

from hypelora_jax import model as model_lib
from hypelora_jax.adapters.sites import Site
from hypelora_jax.config.adapter_sections import ConditionConfig
from hypelora_jax.errors import UserError
from hypelora_jax.hyper import CONDITIONERS, Sizes
from hypelora_jax.hyper.conditioners.descriptions import layer_module
from hypelora_jax.hyper.conditioners.instance import pooled
from hypelora_jax.hyper.conditioners.joins import aligned, disturbed
from hypelora_jax.hyper.conditioners.sentences import attended
from hypelora_jax.types import Conditions

SIZES = Sizes(slots=6, vectors=WIDTH, tasks=TASKS, hidden=tiny.CONFIG.width)
KEY = jax.random.key(3)


def alone(source, **condition):
    """A conditioner by itself, its parameters shaken, and a batch of 3 conditions."""
    config = sources.settings(source, condition=condition)
    made = CONDITIONERS[source].build(config, SIZES)
    params = tiny.shaken(made.init(jax.random.key(0)), by=0.5)
    return made, params, sources.on_device(sources.entries(source, 3))


def unit(x):
    """Unit RMS over the last axis, in float64."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))


def test_the_table_is_that_of_the_tests():
    assert {*CONDITIONERS} == {"none", *sources.SINGLE}


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("standardise", [True, False])
def test_the_last_part_of_a_description_is_whitened(standardise, sign):
    rng = np.random.default_rng(0)
    own = {"whiten": True, "standardise": standardise, "sign": sign}
    config = sources.settings("text", condition=own)
    parts, size = (3, 2) if sign else (1, 6)
    made = CONDITIONERS["text"].build(config, SIZES._replace(vectors=6))
    params = made.init(jax.random.key(0))
    kernel = rng.normal(size=(size, size)).astype(np.float32)
    assert params["standard"]["whitening"].shape == kernel.shape
    params["standard"]["whitening"] = jnp.asarray(kernel)
    if standardise:
        params["standard"] |= {"mean": jnp.full(6, 0.5), "std": jnp.full(6, 2.0)}
    for shape in ((3, 6), (3, SIZES.slots, 6)):
        x = rng.normal(0.2, 2, shape).astype(np.float32)
        found = made.apply(params, {"condition": jnp.asarray(x)}).vectors_USC
        scaled = unit(x.reshape(*shape[:-1], parts, -1)).reshape(shape)
        if standardise:
            scaled = (x.astype(np.float64) - 0.5) / 2
        wanted = np.concatenate(
            [scaled[..., :-size], scaled[..., -size:] @ kernel], axis=-1
        )
        np.testing.assert_allclose(found.reshape(shape), wanted, rtol=1e-4, atol=1e-5)


def test_given_vectors_are_as_they_are_and_texts_have_unit_rms():
    made, params, batch = alone("given")
    found = made.apply(params, batch)
    np.testing.assert_array_equal(found.vectors_USC[:, 0], batch["condition"])
    made, params, batch = alone("text")
    found = made.apply(params, batch | {"row": jnp.zeros(4, jnp.int32)})
    assert found.vectors_USC.shape == (3, 1, WIDTH) and found.row_B.shape == (4,)
    wanted = unit(batch["condition"])
    np.testing.assert_allclose(found.vectors_USC[:, 0], wanted, atol=1e-6)
    by_slot = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, WIDTH)))
    found = made.apply(params, {"condition": by_slot.astype(jnp.float32)})
    np.testing.assert_allclose(found.vectors_USC, unit(by_slot), atol=1e-6)


def test_a_vector_of_zeros_stays_zero_and_has_a_finite_gradient():
    made, params, _ = alone("text")
    zeros = jnp.zeros((2, WIDTH))

    def total(x):
        return jnp.sum(made.apply(params, {"condition": x}).vectors_USC)

    assert total(zeros) == 0 and np.isfinite(jax.grad(total)(zeros)).all()


def test_standardised_texts_are_not_scaled_again():
    made, _, batch = alone("text", standardise=True)
    assert set(made.init(KEY)["standard"]) == {"mean", "std"}
    rng = np.random.default_rng(2)
    standard = {"mean": rng.normal(size=WIDTH), "std": rng.uniform(1, 2, WIDTH)}
    params = {"standard": jax.tree.map(jnp.float32, standard)}
    x = np.asarray(batch["condition"], np.float64)
    wanted = (x - standard["mean"]) / standard["std"]
    found = made.apply(params, batch).vectors_USC[:, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_rows_of_tasks_are_looked_up():
    made, params, batch = alone("task")
    rows_KC = np.asarray(params["task"]["rows"])
    assert rows_KC.shape == (TASKS, WIDTH) and made.reads == {"which": ()}
    found = made.apply(params, batch).vectors_USC
    np.testing.assert_array_equal(found[:, 0], rows_KC[np.asarray(batch["which"])])
    unknown = made.apply(params, {"which": jnp.asarray([0, TASKS], jnp.int32)})
    assert np.isfinite(unknown.vectors_USC[0]).all()
    assert np.isnan(unknown.vectors_USC[1]).all(), "no other task's row"
    drawn = made.init(KEY)["task"]["rows"]
    assert 0.7 < float(drawn.std()) < 1.3
    default = CONDITIONERS["task"].build(
        sources.settings("task", condition={"width": 0}), SIZES
    )
    assert default.width == 64


def test_the_state_of_a_row_is_the_mean_over_its_tokens():
    made, params, _ = alone("instance")
    rng = np.random.default_rng(0)
    hidden_BTD = rng.normal(size=(3, 4, tiny.CONFIG.width)).astype(np.float32)
    mask_BT = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    means = [hidden_BTD[0, :2].mean(0, np.float64), hidden_BTD[1].mean(0, np.float64)]
    found = pooled(jnp.asarray(hidden_BTD), jnp.asarray(mask_BT))
    np.testing.assert_allclose(found, [*means, 0 * means[0]], atol=1e-6)
    narrow = pooled(jnp.asarray(hidden_BTD, jnp.bfloat16), jnp.asarray(mask_BT))
    assert narrow.dtype == jnp.float32
    got = made.apply(params, {"pooled": found}).vectors_USC[:, 0]
    np.testing.assert_allclose(got[:2], unit(means), atol=1e-5)
    total = jax.grad(lambda x: jnp.sum(pooled(x, jnp.asarray(mask_BT))))
    assert not total(jnp.asarray(hidden_BTD)).any(), "its gradient is stopped"


def test_the_model_pools_the_bare_backbone_of_each_row():
    config = sources.settings("instance", condition={"join": "concat"})
    built, params = sources.ready(config)
    batch = tiny.batch(rows=3)
    assert built.reads == ("ids", "mask", "types")
    hidden_BTD = built.parts.backbone.apply(params["backbone"], {}, batch)
    mask_BT1 = np.asarray(batch["mask"], np.float64)[..., None]
    mean_BD = (np.asarray(hidden_BTD, np.float64) * mask_BT1).sum(1) / mask_BT1.sum(1)
    found = model_lib.conditions(built.parts, params, batch).vectors_USC
    width = config.hyper.cond_dim
    assert found.shape == (3, 6, width + tiny.CONFIG.width)
    for s in range(6):
        np.testing.assert_allclose(found[:, s, width:], unit(mean_BD), atol=1e-5)


def test_sentences_are_averaged_and_then_scaled():
    made, params, batch = alone("set")
    assert params == {} and made.reads == {"sentences": (SENTENCES, WIDTH)}
    x_UNC = np.asarray(batch["sentences"], np.float64)
    found = made.apply(params, batch).vectors_USC[:, 0]
    np.testing.assert_allclose(found, unit(x_UNC.mean(1)), atol=1e-6)
    made, _, _ = alone("set", standardise=True)
    standard = {"mean": np.arange(5.0), "std": np.arange(1.0, 6.0)}
    params = {"set": {"standard": jax.tree.map(jnp.float32, standard)}}
    found = made.apply(params, batch).vectors_USC[:, 0]
    wanted = unit(((x_UNC - standard["mean"]) / standard["std"]).mean(1))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_attention_over_sentences_starts_as_their_mean():
    made, params, batch = alone("set", pooling="attention")
    x_UNC, query = np.asarray(batch["sentences"], np.float64), params["set"]["query"]
    scores_UN = unit(x_UNC) @ np.asarray(query, np.float64) / np.sqrt(WIDTH)
    weights_UN = np.exp(scores_UN) / np.exp(scores_UN).sum(1, keepdims=True)
    wanted = unit((weights_UN[..., None] * x_UNC).sum(1))
    found = made.apply(params, batch).vectors_USC[:, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    mean, _, _ = alone("set")
    start = made.apply(made.init(KEY), batch).vectors_USC
    np.testing.assert_allclose(start, mean.apply({}, batch).vectors_USC, atol=1e-6)
    assert np.abs(start[:, 0] - wanted).max() > 1e-3, "else the query does nothing"
    narrow = attended(batch["sentences"].astype(jnp.bfloat16), 100 * query)
    assert narrow.dtype == jnp.bfloat16
    # of a large query the softmax takes one sentence, whose entries come back
    best = np.argmax(unit(x_UNC) @ np.asarray(query, np.float64), axis=1)
    largest = attended(batch["sentences"], 1e4 * query)
    np.testing.assert_allclose(largest, x_UNC[np.arange(3), best], atol=1e-4)


def test_noise_is_drawn_with_a_key_and_stored_without():
    made, params, _ = alone("noise")
    stored = params["noise"]["draws"]
    assert stored.shape == (1, WIDTH) and made.reads == {}
    np.testing.assert_array_equal(made.apply(params, {}).vectors_USC[:, 0], stored)
    one, two = (made.apply(params, {}, jax.random.key(i)).vectors_USC for i in (0, 1))
    assert one.shape == (1, 1, WIDTH) and np.abs(one - two).max() > 0.1
    wide = CONDITIONERS["noise"].build(
        sources.settings("noise", condition={"width": 4000}), SIZES
    )
    z = wide.apply(wide.init(KEY), {}, KEY).vectors_USC
    assert abs(float(z.mean())) < 0.06 and abs(float(z.std()) - 1) < 0.05
    config = sources.settings("noise")
    built, params = sources.ready(config)
    trainable, frozen = built.split(params)
    assert set(frozen["cond"]) == {"noise"} and "noise" not in trainable["cond"]


# Sums, and what is drawn


def test_a_sum_concatenates_the_vectors_in_its_order():
    for source in sources.SUMS:
        config = sources.settings(source)
        built, params = sources.ready(config)
        batch = sources.on_device(sources.entries(source, 3)) | {
            "pooled": jax.random.normal(KEY, (3, tiny.CONFIG.width))
        }
        found = built.parts.cond.apply(params["cond"], batch).vectors_USC
        each, sites = [], config.hyper.cond_dim
        for name in source.split("+"):
            made = CONDITIONERS[name].build(config, SIZES)
            one = np.asarray(made.apply(params["cond"], batch).vectors_USC)
            each.append(np.broadcast_to(one, (3, 6, one.shape[-1])))
        wanted = np.concatenate(each, axis=-1)
        assert wanted.shape[-1] == sources.width(source)
        np.testing.assert_allclose(found[..., sites:], wanted, atol=1e-6)
        embedding = np.broadcast_to(params["cond"]["embedding"], (3, 6, sites))
        np.testing.assert_array_equal(found[..., :sites], embedding)


def vectors(count, seed=0):
    return jax.random.normal(jax.random.key(seed), (count, 1, 2))


def test_conditions_are_aligned_over_one_axis():
    row = jnp.asarray([1, 0, 1, 1], jnp.int32)
    one, two, four = vectors(1), vectors(2), vectors(4)
    (x, y), row_B = aligned([Conditions(one), Conditions(two, row)])
    assert row_B is row and x.shape == y.shape == (2, 1, 2)
    np.testing.assert_array_equal(x, jnp.concatenate([one, one]))
    # conditions of tasks beside those of single rows: each row has its own
    for own in (Conditions(two, row), Conditions(two)):
        found, row_B = aligned([own, Conditions(four), Conditions(one)])
        at = row if own.row_B is not None else np.array([0, 0, 1, 1])
        assert row_B is None
        np.testing.assert_array_equal(found[0], two[at])
        np.testing.assert_array_equal(found[1], four)
        np.testing.assert_array_equal(found[2], jnp.tile(one, (4, 1, 1)))
    (x, y), row_B = aligned([Conditions(two, row), Conditions(two, row[::-1])])
    assert row_B is None and x.shape == y.shape == (4, 1, 2)
    np.testing.assert_array_equal(y, two[row[::-1]])


@pytest.mark.parametrize("source", sources.CASES)
def test_jitter_and_dropout_only_with_a_key(source):
    loud = {"jitter": 0.5, "dropout": 0.5}
    config = sources.settings(source, condition=loud)
    built, params = sources.ready(config)
    pool = {"pooled": jax.random.normal(KEY, (4, tiny.CONFIG.width))}
    batch = sources.on_device(sources.entries(source, 4)) | pool

    def vectors(built, key=None):
        found = jax.jit(built.parts.cond.apply)(params["cond"], batch, key)
        return np.asarray(found.vectors_USC)[..., config.hyper.cond_dim :]

    quiet = sources.model(sources.settings(source))
    np.testing.assert_array_equal(vectors(built), vectors(built))
    np.testing.assert_array_equal(vectors(built), vectors(quiet))
    drawn = vectors(built, KEY)
    np.testing.assert_array_equal(drawn, vectors(built, KEY))
    assert (drawn == drawn[:, :1]).all(), "a vector is disturbed once, for all slots"
    dropped = (drawn == 0).mean()
    assert 0.25 < dropped < 0.75
    kept = drawn != 0
    assert np.abs(drawn - 2 * vectors(quiet, KEY))[kept].min() > 0, "jitter"


def test_dropout_keeps_the_mean_and_jitter_has_its_deviation():
    ones = jnp.ones((1, 1, 4000))
    x = disturbed(ConditionConfig(dropout=0.25), ones, KEY)
    assert set(np.unique(x)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float(x.mean()) - 1) < 0.05
    x = disturbed(ConditionConfig(jitter=0.3), ones, KEY)
    assert abs(float(x.std()) - 0.3) < 0.02 and abs(float(x.mean()) - 1) < 0.02


# Descriptions of the sites


def test_layer_and_module_are_added_by_hand():
    sites = {"q": Site(4, 4, (2, 0)), "up": Site(4, 8, (2,))}
    made = layer_module(sites, 3, 5)
    params = made.init(KEY)
    assert {n: x.shape for n, x in params.items()} == {
        "layer": (2, 5),
        "module": (2, 5),
    }
    layer, module = (np.asarray(params[n]) for n in ("layer", "module"))
    # slots are module-major, with layers in the order of the network's list
    wanted = [layer[1] + module[0], layer[0] + module[0], layer[1] + module[1]]
    found = made.apply(params, {})
    np.testing.assert_allclose(found.vectors_USC, [wanted], atol=1e-6)
    assert found.row_B is None and made.width == 5
    halves = layer_module(sites, 6, 5)
    params = halves.init(KEY)
    layer, module, half = (np.asarray(params[n]) for n in ("layer", "module", "half"))
    wanted = [layer[1] + module[0], layer[0] + module[0], layer[1] + module[1]]
    wanted = [*(x + half[0] for x in wanted), *(x + half[1] for x in wanted)]
    np.testing.assert_allclose(
        halves.apply(params, {}).vectors_USC, [wanted], atol=1e-6
    )
    for sizes in (3, 6):
        made = layer_module(sites, sizes, 4000)
        spread = np.asarray(made.apply(made.init(KEY), {}).vectors_USC).std(axis=-1)
        np.testing.assert_allclose(spread, 1, atol=0.05)


@pytest.mark.parametrize("method", ["hyper_mlp", "hyper_transformer"])
def test_layer_and_module_describe_the_sites_of_a_network(method):
    config = tiny.settings(method, hyper={"cond": "layer_module"})
    built = tiny.model(config)
    params = tiny.params(config, built)["cond"]
    found = built.parts.cond.apply(params, {}).vectors_USC
    slots = 12 if method == "hyper_transformer" else 6
    assert found.shape == (1, slots, 5)
    assert len(np.unique(np.asarray(found[0]).round(5), axis=0)) == slots
    trainable, _ = built.split({"cond": params})
    assert trainable["cond"].keys() == params.keys()


SCRIPT = """
import jax, numpy as np, tiny, sources
config = sources.settings(
    "task+text", hyper={"cond": "layer_module"},
    lora={"targets": ("v", "up", "q", "down", "k", "o")},
)
built, params = sources.ready(config)
batch = tiny.batch(3) | sources.on_device(sources.entries("task+text", 3))
found = built.adapt(params, batch, 0.0).factors
for module, own in found.items():
    print(module, [float(np.abs(np.asarray(x)).sum()) for x in own.values()])
"""


def test_the_order_of_modules_does_not_depend_on_the_seed_of_hashes():
    def out(seed):
        paths = os.pathsep.join(p for p in sys.path if p)
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = out("1")
    assert first == out("2") and first.count("\n") == 6


# Refusals


@pytest.mark.parametrize(
    "source", ["text+text", "none+text", "task+none", "none+none", "given+task+given"]
)
def test_a_name_twice_or_none_in_a_sum_is_refused(source):
    with pytest.raises(UserError) as caught:
        sources.model(sources.settings(source))
    wanted = f"config.condition.source is {source!r}; expected one of none, given, task"
    assert str(caught.value).startswith(wanted) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "condition", "message"),
    [
        ("text+nonsense", {}, "source is 'nonsense'; expected one of none, given"),
        ("text+", {}, "source is ''; expected one of none, given"),
        (
            "given+text",
            {},
            "text reads batch\\['condition'\\], which the source before",
        ),
        (
            "task",
            {"join": "replace"},
            "join=replace leaves out .* but condition.source=task",
        ),
        ("text", {"width": 0}, "source=text needs the width of the embeddings"),
        ("set", {"width": 0}, "source=set needs the width of the embeddings"),
        ("given", {"width": 0}, "source=given needs a vector with each example"),
    ],
)
def test_sources_that_cannot_be_built_are_refused(source, condition, message):
    with pytest.raises(UserError, match=message):
        sources.model(sources.settings(source, condition=condition))


def test_a_row_a_task_needs_a_set_of_tasks():
    with pytest.raises(UserError, match="source=task needs a set of tasks"):
        tiny.model(sources.settings("task"))


@pytest.mark.parametrize(
    ("source", "batch", "message"),
    [
        ("task", {}, r"needs batch\['which'\] of shape \(U\), but"),
        ("task", {"which": jnp.zeros((2, 1))}, r"shape \(2, 1\); expected \(U\)"),
        ("text", {}, r"source=text needs batch\['condition'\] of shape \(U, 5\) or"),
        (
            "set",
            {"sentences": jnp.zeros((2, 3, 5))},
            r"\(2, 3, 5\); expected \(U, 4, 5\)",
        ),
        ("instance", {}, r"needs batch\['pooled'\] of shape \(U, 32\)"),
    ],
)
def test_a_batch_without_what_is_read_is_refused(source, batch, message):
    made, params, _ = alone(source)
    with pytest.raises(UserError, match=message):
        made.apply(params, batch)
