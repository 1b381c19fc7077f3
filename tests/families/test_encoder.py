"""Laws of the encoder: adapters, padding, remat, vmap, dtypes, dropout."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import encoder

from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.errors import UserError
from hypelora_jax.families import preset
from hypelora_jax.families.blocks.layer import Block
from hypelora_jax.families.roberta import max_tokens
from hypelora_jax.families.sizes import site_dims

ROBERTA = preset("tiny")
BERT = replace(ROBERTA, family="bert", pad_id=0, type_vocab=2, max_positions=16)
DISTILBERT = replace(BERT, family="distilbert", type_vocab=0)


def make_params(config, scale=5.0):
    """Random weights large enough for attention to differ from a mean."""
    params = encoder(config).init(jax.random.key(0))
    return jax.tree.map(lambda x: x * scale if x.ndim > 2 else x, params)


def make_lora(config, rows=(), rank=3, modules=("q", "k", "v", "o", "up", "down")):
    def draw(name, *shape):
        key = jax.random.fold_in(jax.random.key(1), sum(map(ord, name)))
        return 0.2 * jax.random.normal(key, (*rows, config.layers, *shape))

    return {
        m: {
            "a": draw(m + "a", site_dims(config)[m][0], rank),
            "b": draw(m + "b", rank, site_dims(config)[m][1]),
        }
        for m in modules
    }


def make_batch(config, lengths=(7, 4, 1), total=8):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, config.vocab, (len(lengths), total)).astype(np.int32)
    mask = np.arange(total)[None] < np.array(lengths)[:, None]
    types = rng.integers(0, max(config.type_vocab, 1), ids.shape).astype(np.int32)
    return {"ids": np.where(mask, ids, config.pad_id), "mask": mask, "types": types}


# one jitted function for all tests: its compilations are shared
ENCODER = encoder(ROBERTA)
apply = jax.jit(ENCODER.apply)


@pytest.fixture(scope="module")
def params():
    return make_params(ROBERTA)


def close(got, wanted, atol=2e-5):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)


def test_factored_equals_merged(params):
    lora, batch = make_lora(ROBERTA), make_batch(ROBERTA)
    factored = apply(params, lora, batch)
    close(factored, apply(lora_lib.merge(params, lora), {}, batch))
    assert float(jnp.max(jnp.abs(factored - apply(params, {}, batch)))) > 0.1


def test_a_zero_adapter_and_an_absent_one_change_nothing(params):
    batch = make_batch(ROBERTA)
    lora = make_lora(ROBERTA, modules=("q", "down"))
    zero = {m: {"a": f["a"], "b": 0 * f["b"]} for m, f in lora.items()}
    np.testing.assert_array_equal(apply(params, zero, batch), apply(params, {}, batch))


@pytest.mark.parametrize("config", [ROBERTA, BERT, DISTILBERT], ids=lambda c: c.family)
def test_padding_tokens_change_nothing(config):
    params, run = make_params(config), jax.jit(encoder(config).apply)
    batch, row, length = make_batch(config), 1, 4
    padded = run(params, {}, batch)
    alone = {k: v[row, :length] for k, v in batch.items()}  # and one row, (T,)
    close(padded[row, :length], run(params, {}, alone))


def test_trace_ends_with_apply(params):
    batch, lora = make_batch(ROBERTA), make_lora(ROBERTA)
    states = jax.jit(ENCODER.trace)(params, lora, batch)
    assert states.shape == (ROBERTA.layers + 1, *batch["ids"].shape, ROBERTA.width)
    close(states[-1], apply(params, lora, batch), 1e-6)


@pytest.mark.parametrize("remat", ["none", "layer"])  # unrolled and scanned
def test_the_states_that_are_read_are_those_among_all(params, remat):
    """With `first` the last layer computes these alone, and has the same gradient."""
    batch, lora = make_batch(ROBERTA), make_lora(ROBERTA, modules=("q", "v", "up"))
    at_BP = jnp.tile(jnp.array([[0, 2]]), (len(batch["ids"]), 1))
    weight = jax.random.normal(jax.random.key(1), (*at_BP.shape, ROBERTA.width))
    run = encoder(ROBERTA, remat=remat).apply

    def some(lora):
        return jnp.sum(weight * run(params, lora, {**batch, "first": at_BP}))

    def of_all(lora):
        return jnp.sum(weight * run(params, lora, batch)[:, [0, 2]])

    got, wanted = (jax.jit(jax.value_and_grad(f))(lora) for f in (some, of_all))
    jax.tree.map(lambda a, b: close(a, b, 1e-4 * np.abs(b).max()), got, wanted)


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_no_gradient_goes_below_the_lowest_adapted_layer(params, remat):
    batch, lora = make_batch(ROBERTA), make_lora(ROBERTA)
    ends = {f"{m}/{f}": x[-1] for m, fs in lora.items() for f, x in fs.items()}

    def loss(ends, lowest):
        own = {
            m: {f: x.at[-1].set(ends[f"{m}/{f}"]) for f, x in fs.items()}
            for m, fs in jax.tree.map(jnp.zeros_like, lora).items()
        }
        run = encoder(ROBERTA, remat=remat, lowest=lowest).apply
        return jnp.sum(run(params, own, batch)[:, 0] ** 3)

    top = ROBERTA.layers - 1
    graded = {n: jax.jit(jax.value_and_grad(partial(loss, lowest=n))) for n in (0, top)}
    got, wanted = graded[top](ends), graded[0](ends)
    jax.tree.map(lambda a, b: close(a, b, 1e-4 * np.abs(b).max()), got, wanted)
    flops = {n: f.lower(ends).compile().cost_analysis() for n, f in graded.items()}
    assert flops[top]["flops"] < flops[0]["flops"]


def test_remat_gives_the_same_values_and_gradients(params):
    batch, key = make_batch(ROBERTA), jax.random.key(3)
    lora = make_lora(ROBERTA, modules=("v", "down"))

    def value_and_grad(remat):
        apply = encoder(ROBERTA, remat=remat, lora_dropout=0.2).apply
        f = lambda lora: jnp.sum(apply(params, lora, batch, key)[:, 0] ** 3)  # noqa: E731
        assert ("remat" in str(jax.make_jaxpr(f)(lora))) == (remat == "layer")
        return jax.jit(jax.value_and_grad(f))(lora)

    plain, remat = value_and_grad("none"), value_and_grad("layer")
    jax.tree.map(lambda a, b: close(a, b, 1e-4 * np.abs(b).max()), remat, plain)


def test_vmapped_adapters_equal_each_alone(params):
    batch = make_batch(ROBERTA)
    rows = len(batch["ids"])
    lora = make_lora(ROBERTA, rows=(rows,))
    keys = jax.random.split(jax.random.key(5), rows)
    vmap = lambda axis: jax.jit(jax.vmap(ENCODER.apply, (None, 0, 0, axis)))  # noqa: E731
    with_keys = vmap(0)(params, lora, batch, keys)
    without = vmap(None)(params, lora, batch, None)
    for i in range(rows):
        own, row = jax.tree.map(lambda x, i=i: x[i], (lora, batch))
        close(with_keys[i], apply(params, own, row, keys[i]))
        close(without[i], apply(params, own, row))
    assert float(jnp.max(jnp.abs(with_keys - without))) > 0.1


def test_vmapped_adapters_build_no_dense_delta(params):
    batch = make_batch(ROBERTA)
    rows, rank = len(batch["ids"]), 3
    lora = make_lora(ROBERTA, rows=(rows,), rank=rank, modules=("up",))
    f = jax.vmap(ENCODER.apply, (None, 0, 0, None))
    text = str(jax.make_jaxpr(lambda lora: f(params, lora, batch, None))(lora))
    assert f"f32[{rows},{ROBERTA.width},{rank}]" in text  # the reading works
    assert f"f32[{rows},{ROBERTA.width},{ROBERTA.ff}]" not in text


def test_dropout_has_its_own_mask_in_each_layer_and_place(params):
    """With key=None there is none; another key gives other values; same key, same."""
    batch = make_batch(ROBERTA)
    one, again, other = (apply(params, {}, batch, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.max(jnp.abs(one - other))) > 0.1
    plain = apply(params, {}, batch)
    np.testing.assert_array_equal(plain, apply(params, {}, batch, None))


def test_layers_draw_different_dropout(params):
    """Two equal layers would drop the same entries if they shared a key."""
    config = replace(ROBERTA, hidden_dropout=0.5, attention_dropout=0.0)
    zero = {**params, "layers": jax.tree.map(jnp.zeros_like, params["layers"])}
    ones = {"scale": jnp.ones((2, 32)), "bias": jnp.zeros((2, 32))}
    bias = jnp.ones((2, 32))
    zero["layers"] |= {"attn_norm": ones, "ff_norm": ones}
    zero["layers"]["o"] = {**zero["layers"]["o"], "bias": bias}
    batch = make_batch(ROBERTA, (8,))
    states = jax.jit(encoder(config).trace)(zero, {}, batch, jax.random.key(0))
    # o gives ones, half of them dropped: the step of each layer shows its mask
    step = jnp.diff(states, axis=0)
    low = step < jnp.median(step, axis=-1, keepdims=True)
    agree = float(jnp.mean(low[0] == low[1]))
    assert agree < 0.9


@pytest.mark.parametrize(("config", "drops"), [(BERT, True), (DISTILBERT, False)])
def test_dropout_after_attention_is_bert_s_alone(config, drops):
    """With `down` zero, the only dropout of a layer is that after attention."""
    config = replace(config, hidden_dropout=0.5, attention_dropout=0.0)
    params, batch = make_params(config), make_batch(config)
    layers = params["layers"]
    layers["down"] = jax.tree.map(jnp.zeros_like, layers["down"])
    states = jax.jit(encoder(config).trace)(params, {}, batch, jax.random.key(0))
    first = jax.tree.map(lambda x: x[0], layers)
    plain = Block(config).apply({"params": first}, states[0], batch["mask"], {}, None)
    change = float(jnp.max(jnp.abs(states[1] - plain)))
    assert change > 0.1 if drops else change < 1e-5


def test_bfloat16_is_close_and_stays_bfloat16(params):
    batch, lora = make_batch(ROBERTA), make_lora(ROBERTA)
    wanted = apply(params, lora, batch)
    got = jax.jit(encoder(ROBERTA, dtype="bfloat16").apply)(params, lora, batch)
    assert got.dtype == jnp.bfloat16
    error = jnp.abs(got.astype(jnp.float32) - wanted)
    assert float(jnp.mean(error)) < 0.03  # states have unit variance


def test_float64_is_close_and_stays_float64(params):
    batch, lora = make_batch(ROBERTA), make_lora(ROBERTA)
    wanted = apply(params, lora, batch)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, lora))
        got = jax.jit(encoder(ROBERTA, dtype="float64").apply)(*double, batch)
        assert got.dtype == jnp.float64
    close(np.asarray(got), wanted)


def test_all_padding_rows_are_finite_with_their_gradient(params):
    batch = make_batch(ROBERTA, (7, 0))
    total = lambda lora: jnp.sum(ENCODER.apply(params, lora, batch) ** 2)  # noqa: E731
    grads = jax.jit(jax.grad(total))(make_lora(ROBERTA, modules=("q", "k", "v")))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


def test_init_is_hugging_face_s():
    params = encoder(ROBERTA).init(jax.random.key(0))
    word = params["embed"]["word"]["embedding"]
    np.testing.assert_allclose(jnp.std(word), 0.02, rtol=0.05)
    assert not word[ROBERTA.pad_id].any()
    q = params["layers"]["q"]["kernel"]
    np.testing.assert_allclose(jnp.std(q), 0.02, rtol=0.1)
    assert not np.array_equal(q[0], q[1])
    assert not params["layers"]["q"]["bias"].any()
    assert bool((params["layers"]["ff_norm"]["scale"] == 1).all())
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_too_many_tokens_is_one_line(params):
    config = replace(ROBERTA, max_positions=10)
    assert max_tokens(config) == 8
    with pytest.raises(UserError, match="9 tokens.*positions for 8.*max_length"):
        encoder(config).apply(params, {}, make_batch(config, (9,), total=9))
    with pytest.raises(UserError, match="remat is 'all'; expected one of none, layer"):
        encoder(ROBERTA, remat="all")
