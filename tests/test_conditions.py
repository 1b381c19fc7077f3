"""Several conditions in a batch: one path, whatever rows share which."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax import model as model_lib
from hypelora_jax import trees
from hypelora_jax.adapters import lora
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.families import preset
from hypelora_jax.keys import named_keys
from hypelora_jax.plan.hlo import parse
from hypelora_jax.train.step import gradients
from hypelora_jax.types import Adapter

ALPHA = jnp.zeros(())
WIDTH, ROWS = 5, 6
ROW = jnp.asarray([2, 0, 1, 1, 0, 2], jnp.int32)
METHODS = (
    "hyper_mlp",
    pytest.param("hyper_transformer", marks=pytest.mark.soak),
)


def ready(method="hyper_mlp", **sections):
    given = {"source": "given", "width": WIDTH} | sections.pop("condition", {})
    config = tiny.settings(method, condition=given, **sections)
    model = tiny.model(config)
    params = tiny.params(config, model)
    own = {n: x for n, x in params.items() if n != "backbone"}
    return config, model, {**params, **tiny.shaken(own)}


def vectors(count, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, WIDTH)), jnp.float32)


def logits(model, params, batch, key=None):
    return np.asarray(tiny.predict(model, params, batch, ALPHA, key))


def rows_of(batch, index):
    return {n: x[np.asarray(index)] for n, x in batch.items()}


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_one_condition_equal_the_shared_path(method):
    _, model, params = ready(method)
    batch, one = tiny.batch(ROWS), vectors(1)
    shared = logits(model, params, batch | {"condition": one})
    copies = jnp.tile(one, (ROWS, 1))
    own = logits(model, params, batch | {"condition": copies})
    np.testing.assert_allclose(own, shared, atol=1e-6)
    indexed = {"condition": copies[:3], "row": ROW}
    np.testing.assert_allclose(
        logits(model, params, batch | indexed), shared, atol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_different_conditions_give_each_row_what_it_gets_alone(method):
    # layer 1 has static factors, which all conditions share
    sections = {"lora": {"targets": ("q", "up")}, "hyper": {"layers": (0, 2)}}
    _, model, params = ready(method, **sections)
    batch, given = tiny.batch(ROWS), vectors(ROWS)
    together = logits(model, params, batch | {"condition": given})
    for b in range(ROWS):
        row = rows_of(batch, [b]) | {"condition": given[b : b + 1]}
        alone = logits(model, params, row)
        np.testing.assert_allclose(together[b : b + 1], alone, atol=1e-5)
    assert np.abs(together - together[::-1]).max() > 1e-3


def loss_of(model, params, frozen, batch, keys):
    """Summed loss under masks that depend on each row's key; the head has none."""
    params = trees.union(params, frozen)
    factors, row_B = model.adapt(params, batch, ALPHA)
    rows = {n: batch[n] for n in ("ids", "mask", "types")}
    hidden = model.parts.backbone.apply(params["backbone"], factors, rows, keys, row_B)
    out = model.parts.head.apply(params["head"], hidden, batch)
    logp = jax.nn.log_softmax(out)
    return -jnp.sum(jnp.take_along_axis(logp, batch["label"][:, None], axis=1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("drops", [False, True])
def test_gradients_are_the_sum_of_those_of_each_row_alone(method, drops):
    config, model, params = ready(method, lora={"dropout": 0.2})
    trainable, frozen = model.split(params)
    batch, given = tiny.batch(ROWS), vectors(3)
    keys = jax.random.split(jax.random.key(7), ROWS) if drops else None
    grads = jax.jit(jax.grad(lambda p, b, k: loss_of(model, p, frozen, b, k)))
    together = grads(trainable, batch | {"condition": given, "row": ROW}, keys)
    alone = []
    for b in range(ROWS):
        row = rows_of(batch, [b]) | {"condition": given[ROW[b]][None]}
        alone.append(grads(trainable, row, None if keys is None else keys[b : b + 1]))
    summed = jax.tree.map(lambda *x: sum(x), *alone)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(summed))))
    chex.assert_trees_all_close(together, summed, atol=1e-5 * norm)


def test_permuting_rows_permutes_outputs():
    _, model, params = ready()
    batch, given = tiny.batch(ROWS), vectors(3)
    order = np.random.default_rng(1).permutation(ROWS)
    out = logits(model, params, batch | {"condition": given, "row": ROW})
    moved = rows_of(batch | {"row": ROW}, order) | {"condition": given}
    np.testing.assert_allclose(logits(model, params, moved), out[order], atol=1e-5)
    own = logits(model, params, batch | {"condition": given[ROW]})
    np.testing.assert_allclose(own, out, atol=1e-5)


def test_groups_in_order_need_no_index():
    _, model, params = ready()
    batch, given = tiny.batch(ROWS), vectors(3)
    grouped = logits(model, params, batch | {"condition": given})
    row = jnp.repeat(jnp.arange(3, dtype=jnp.int32), 2)
    indexed = logits(model, params, batch | {"condition": given, "row": row})
    np.testing.assert_allclose(grouped, indexed, atol=1e-5)


def test_dropout_differs_from_row_to_row():
    _, model, params = ready()
    row = rows_of(tiny.batch(1), [0, 0])
    same = row | {"condition": jnp.tile(vectors(1), (2, 1))}
    adapter = model.adapt(params, same, ALPHA)
    # not the logits: the head has masks of its own
    run = jax.jit(lambda key: model_lib.hidden(model.parts, params, adapter, same, key))
    out = run(jax.random.key(0))
    assert np.abs(out[0] - out[1]).max() > 1e-4


def conditions_of(case):
    """(entries of the batch, micro-batches) of 8 rows."""
    row = jnp.arange(8, dtype=jnp.int32) % 3
    return {
        "each row its own": ({"condition": vectors(8)}, 2),
        "three shared": ({"condition": vectors(3), "row": row}, 4),
        "groups cut whole": ({"condition": vectors(4)}, 2),
        "groups cut in two": ({"condition": vectors(2)}, 4),
        "one": ({"condition": vectors(1)}, 2),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "each row its own",
        "three shared",
        "groups cut whole",
        "groups cut in two",
        "one",
    ],
)
def test_accumulation_equals_the_large_batch(case):
    config, model, params = ready()
    trainable, frozen = model.split(params)
    given, accumulate = conditions_of(case)
    batch = tiny.batch(rows=8) | given
    batch["weight"] = jnp.asarray([1, 1, 1, 1, 1, 0, 1, 0], jnp.float32)
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")
    whole, cut = (
        jax.jit(gradients(model, n, deterministic=True))(
            trainable, frozen, batch, ALPHA, keys
        )
        for n in (1, accumulate)
    )
    chex.assert_trees_all_close(whole, cut, atol=1e-6)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def count(text):
    program, _ = parse(text)
    return sum(len(body) for body in program.values())


@pytest.mark.parametrize("method", METHODS)
def test_one_condition_compiles_to_the_program_without_the_axis(method):
    """As many instructions, backward ones too, as a step that knows no conditions."""
    config = tiny.settings(method)
    model = tiny.model(config)
    params = tiny.params(config, model)
    batch = tiny.batch()
    parts = model.parts

    def plain(params, batch):
        cond_SC = params["cond"]["embedding"]
        made = [(parts.hyper_sites, parts.hyper.apply(params["hyper"], cond_SC, ALPHA))]
        factors = lora.fold(lora.place(made, parts.num_layers), parts.scale)
        rows = {n: batch[n] for n in ("ids", "mask", "types")}
        rows["first"] = jnp.zeros((len(batch["ids"]), 1), jnp.int32)
        hidden_BTD = parts.backbone.apply(params["backbone"], factors, rows)
        return jnp.sum(parts.head.apply(params["head"], hidden_BTD, batch))

    def ours(params, batch):
        return jnp.sum(tiny.forward(model, params, batch, ALPHA))

    for of in (lambda f: f, lambda f: jax.grad(f, allow_int=True)):
        assert count(compiled(of(ours), params, batch)) == count(
            compiled(of(plain), params, batch)
        )


def products(jaxpr):
    """Output shapes of all products of matrices, in inner programs too."""
    out = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            out.append(eqn.outvars[0].aval.shape)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    out += products(inner)
    return out


def test_the_network_runs_once_a_condition_and_builds_no_dense_delta():
    config, model, params = ready(hyper={"widths": (11, 7)})
    trainable, frozen = model.split(params)
    batch = tiny.batch(ROWS) | {"condition": vectors(3), "row": ROW}
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")
    run = gradients(model, 1, deterministic=False)
    traced = jax.jit(run).trace(trainable, frozen, batch, ALPHA, keys)
    slots, width = model.parts.hyper.slots, tiny.CONFIG.width
    shapes = products(traced.jaxpr.jaxpr)
    assert (3, slots, 11) in shapes and (3, slots, 7) in shapes
    assert not [s for s in shapes if s[0] == ROWS and s[-1] in (11, 7)]
    assert not [s for s in shapes if ROWS * slots in s]
    text = compiled(run, trainable, frozen, batch, ALPHA, keys)
    assert f"f32[{ROWS},{width},2]" in text, "a factor of each row is there"
    for lead in (f"{ROWS},", f"{ROWS},3,", f"3,{ROWS},"):
        assert f"f32[{lead}{width},{width}]" not in text


@pytest.mark.soak
def test_eight_conditions_need_little_more_memory_than_one():
    """At MiniLM's size, 32 x 64 tokens, as benchmarks/conditions.py measures it."""
    config = tiny.settings(
        condition={"source": "given", "width": 128},
        hyper={"widths": (256, 256), "cond_dim": 128},
        lora={"rank": 8, "alpha": 8.0},
    )
    sizes = preset("minilm")
    model = model_lib.build(config, sizes, unnamed(2))

    def made(key):
        base = {
            "backbone": model.parts.backbone.init(key),
            "head": model.parts.head.init(key),
        }
        return model.split(model.init(key, base))

    trainable, frozen = jax.eval_shape(made, jax.random.key(0))
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")
    run = gradients(model, 1, deterministic=False)
    of = jax.ShapeDtypeStruct
    rows = {n: of((32, 64), jnp.int32) for n in ("ids", "types")}
    rows |= {"mask": of((32, 64), jnp.bool_), "label": of((32,), jnp.int32)}
    rows["weight"] = of((32,), jnp.float32)
    peak = {}
    for count in (1, 8):
        batch = rows | {"condition": of((count, 128), jnp.float32)}
        compiled = jax.jit(run).lower(trainable, frozen, batch, ALPHA, keys).compile()
        memory = compiled.memory_analysis()
        peak[count] = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert peak[8] <= 1.15 * peak[1], peak


def test_groups_gather_no_factors():
    _, model, params = ready()
    shape = re.compile(rf"f32\[{ROWS},{tiny.CONFIG.width},2\]")

    def found(more):
        def run(p, b):
            return tiny.forward(model, p, b, ALPHA)

        return shape.search(compiled(run, params, tiny.batch(ROWS) | more))

    assert not found({"condition": vectors(3)})
    assert found({"condition": vectors(3), "row": ROW}), "else the test cannot tell"


def test_an_adapter_of_one_condition_has_no_axis():
    _, model, params = ready()
    one = model.adapt(params, {"condition": vectors(1), "row": None}, ALPHA)
    assert one.row_B is None and one.factors["q"]["a"].ndim == 3
    several = model.adapt(params, {"condition": vectors(3), "row": ROW}, ALPHA)
    assert isinstance(several, Adapter)
    assert several.factors["q"]["b"].shape[:2] == (tiny.CONFIG.layers, 3)
    np.testing.assert_array_equal(several.row_B, ROW)
