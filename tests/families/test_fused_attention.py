"""Fused attention: where it is chosen, what refuses it, and that it equals xla's.

The TPU's kernel runs in Pallas' interpret mode. cuDNN's needs a GPU (tests/accel); here
it is lowered, and the order of its keys is tested with attention in plain JAX.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas import tpu as pltpu

from hypelora_jax import model as model_lib
from hypelora_jax.config.sections import MeshConfig
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks import attention as attention_lib
from hypelora_jax.families.blocks import fused_attention
from hypelora_jax.families.blocks.attention import attention
from hypelora_jax.families.blocks.fused_attention import Call, choice, fused
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.sharding.rules import Place

CPU, GPU, TPU = Place("cpu"), Place("gpu", 9.0), Place("tpu")
HALF = Call("bfloat16", rows=8, queries=512, tokens=512, heads=12, width=64)
WIDE = HALF._replace(dtype="float32")
SHORT = HALF._replace(queries=128, tokens=128)
DROPPED = HALF._replace(dropout=0.1)
PACKED = HALF._replace(by_query=True)
FIRST = HALF._replace(queries=1)


@pytest.mark.parametrize(
    ("where", "call", "auto", "refused"),
    [
        (CPU, HALF, "xla", "the device is a CPU; expected an NVIDIA GPU or a TPU"),
        (GPU, HALF, "cudnn", ""),
        (GPU, SHORT, "cudnn", ""),
        (GPU, WIDE, "xla", "model.dtype is float32 .*; expected model.dtype=bfloat16"),
        (GPU, DROPPED, "xla", "0.1, and .* expected model.attention_dropout=0, or"),
        (GPU, PACKED, "xla", "rows are packed; expected data.packing=false, or"),
        (GPU, FIRST, "xla", ""),
        (GPU, HALF._replace(width=36), "xla", "the width 36; expected widths mult"),
        (GPU, HALF._replace(width=136), "xla", "the width 136"),
        (Place("gpu", 7.5), HALF, "xla", "capability 7.5; expected .* at least 8.0"),
        (Place("gpu", 0.0), HALF, "xla", "capability 0.0; expected an NVIDIA GPU"),
        (GPU._replace(rows=3), HALF, "xla", "8 rows into 3 parts and 12 heads into 1"),
        (GPU._replace(heads=8), HALF, "xla", "12 heads into 8; expected mesh sizes"),
        (GPU._replace(rows=4, heads=4), HALF, "cudnn", ""),
        (GPU._replace(known=False), HALF, "cudnn", ""),
        (TPU, HALF, "flash", ""),
        (TPU, WIDE, "flash", ""),
        (TPU, HALF._replace(dtype="float64"), "xla", "model.dtype is float64"),
        (TPU, HALF._replace(width=36), "flash", ""),
        (TPU, HALF._replace(width=192), "xla", "the width 192; expected widths up to"),
        (TPU, DROPPED, "xla", "the rate of attention dropout is 0.1"),
        (TPU, PACKED, "xla", "rows are packed"),
        (TPU, FIRST, "xla", ""),
    ],
)
def test_the_table_of_the_choice(where, call, auto, refused):
    assert choice("xla", where, call) == "xla"
    assert choice("auto", where, call) == auto
    if not refused:
        assert choice("fused", where, call) == auto
        return
    with pytest.raises(UserError, match=refused) as found:
        choice("fused", where, call)
    line = str(found.value)
    assert line.startswith("config.model.attention is fused, but ")
    assert line.endswith(", or model.attention=auto") and "\n" not in line


@pytest.mark.parametrize(
    ("where", "call"), [(TPU, SHORT), (TPU._replace(known=False), HALF)]
)
def test_auto_takes_the_kernel_of_a_tpu_for_long_rows_on_a_known_mesh(where, call):
    assert choice("auto", where, call) == "xla"
    assert choice("fused", where, call) == "flash"


def drawn(rows=3, tokens=40, width=32, dtype="float32"):
    """q, k, v, cotangent, and a mask with a hole and a row without any token."""
    keys = jax.random.split(jax.random.key(0), 4)
    out = [jax.random.normal(k, (rows, tokens, width), dtype) for k in keys]
    mask = np.ones((rows, tokens), bool)
    mask[0, tokens // 2 :] = False
    mask[0, 3] = False
    mask[1] = False
    return *out, jnp.asarray(mask)


def both(attend, q, k, v, weight, mask):
    """The output, and the gradients by q, k and v."""

    def total(q, k, v):
        out = attend(q, k, v, mask)
        return jnp.sum(out * weight), out

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(q, k, v)
    return out, *gradients


def plain(q, k, v, mask, heads=2):
    return attention(q, k, v, mask, heads, 0.0, None)


def on_tpu(monkeypatch):
    monkeypatch.setattr(attention_lib, "place_of_trace", lambda: TPU)


def by_kernel(q, k, v, mask, heads=2):
    return attention(q, k, v, mask, heads, 0.0, None, "fused")


def lowered(platform, kernel):
    """The text of a gradient's program for another platform, with an odd length."""
    q, k, v, weight, mask = drawn(tokens=33, dtype="bfloat16")

    def total(q, k, v):
        return jnp.sum(fused(kernel, q, k, v, mask, 2) * weight, dtype=jnp.float32)

    gradient = jax.grad(total, argnums=(0, 1, 2))
    traced = jax.jit(gradient).trace(q, k, v)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("tokens", [40, 128, 200])
def test_the_kernel_of_a_tpu_equals_xla(monkeypatch, tokens):
    """To 1e-5 in float32, where both differ by the order of their sums."""
    on_tpu(monkeypatch)
    given = drawn(tokens=tokens)
    with pltpu.force_tpu_interpret_mode():
        found = both(by_kernel, *given)
    for got, wanted in zip(found, both(plain, *given), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        assert np.isfinite(got).all() and np.abs(wanted).max() > 0.1


def test_a_row_without_tokens_gets_the_mean_of_its_values():
    q, k, v, weight, mask = drawn()
    out, d_q, d_k, d_v = both(plain, q, k, v, weight, mask)
    np.testing.assert_allclose(out[1], jnp.broadcast_to(v[1].mean(0), v[1].shape), 1e-4)
    assert not d_q[1].any() and not d_k[1].any() and d_v[1].any()


def test_a_row_without_an_axis_of_rows(monkeypatch):
    on_tpu(monkeypatch)
    q, k, v, _, mask = drawn()
    with pltpu.force_tpu_interpret_mode():
        one = jax.jit(by_kernel)(q[0], k[0], v[0], mask[0])
    np.testing.assert_allclose(one, plain(q, k, v, mask)[0], atol=1e-5)


def test_a_program_for_a_tpu_calls_its_kernel_forward_and_backward():
    text = lowered("tpu", "flash")
    assert text.count("@tpu_custom_call") == 3  # forward, d_q, d_k with d_v


def test_each_device_computes_its_own_rows_and_heads(monkeypatch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, model=2), jax.devices()[:4])
    where = []

    def place():
        where.append(rules.place_of_trace()._replace(platform="tpu"))
        return where[-1]

    monkeypatch.setattr(attention_lib, "place_of_trace", place)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    given = jax.device_put(drawn(rows=4), whole)
    with pltpu.force_tpu_interpret_mode():
        found = both(rules.over(mesh, by_kernel), *given)
    assert (where[0].rows, where[0].heads, where[0].known) == (2, 2, True)
    for got, wanted in zip(found, both(plain, *given), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_without_a_mesh_the_place_is_the_default_device():
    assert rules.place_of_trace() == Place("cpu", known=False)  # of 8 devices


def test_packed_rows_and_few_queries_are_computed_by_xla(monkeypatch):
    on_tpu(monkeypatch)
    monkeypatch.setattr(attention_lib, "fused", None)  # not called
    q, k, v, _, mask = drawn()
    auto = partial(attention, heads=2, rate=0.0, key=None, asked="auto")
    by_query = mask[:, None, :] & jnp.eye(40, dtype=bool)[None]
    np.testing.assert_array_equal(
        auto(q, k, v, by_query), attention(q, k, v, by_query, 2, 0.0, None)
    )
    found, wanted = by_kernel(q[:, :1], k, v, mask), plain(q[:, :1], k, v, mask)
    np.testing.assert_array_equal(found, wanted)


def test_dropout_in_force_is_refused_and_the_same_rate_is_not_in_inference(monkeypatch):
    on_tpu(monkeypatch)
    monkeypatch.setattr(attention_lib, "fused", lambda *_: "fused")
    q, k, v, _, mask = drawn()
    key = jax.random.key(0)
    with pytest.raises(UserError, match="model.attention_dropout=0, or"):
        attention(q, k, v, mask, 2, 0.1, key, "fused")
    assert attention(q, k, v, mask, 2, 0.1, None, "fused") == "fused"
    assert attention(q, k, v, mask, 2, 0.0, key, "fused") == "fused"


def test_keys_with_a_token_come_first_and_their_gradients_go_back(monkeypatch):
    """What `_cudnn` does around cuDNN, which is replaced by attention in plain JAX."""
    own = partial(jax.nn.dot_product_attention)

    def without_cudnn(*args, implementation, **more):
        assert implementation == "cudnn"
        return own(*args, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    given = drawn()
    found = both(lambda *x: fused("cudnn", *x[:3], x[3], 2), *given[:3], *given[3:])
    scaled = lambda q, k, v, m: plain(q * 4, k, v, m)  # noqa: E731  (width of a head: 16)
    for got, wanted in zip(found, both(scaled, *given), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_program_for_cuda_calls_cudnn_forward_and_backward(monkeypatch):
    """Lowering needs no GPU, but asks which cuDNN there is."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    text = lowered("cuda", "cudnn")
    assert "@__cudnn$fmhaSoftmax(" in text and "@__cudnn$fmhaSoftmaxBackward(" in text
    assert "PADDING" in text and "scatter" not in text


def test_a_models_rate_of_attention_dropout_can_be_replaced():
    """With the rate 0, training draws what the base model without this rate draws."""
    batch, key = tiny.batch(), jax.random.key(5)
    none = dataclasses.replace(tiny.CONFIG, attention_dropout=0.0)
    found = []
    for fields, config in (({"attention_dropout": 0.0}, tiny.CONFIG), ({}, none)):
        settings = tiny.settings("lora", model=fields)
        built = model_lib.build(settings, config, unnamed(tiny.CLASSES))
        params = tiny.params(settings, built)
        found.append(tiny.predict(built, params, batch, key=key))
    np.testing.assert_array_equal(*found)
    plain = tiny.settings("lora")
    other = tiny.predict(
        tiny.model(plain), tiny.params(plain, tiny.model(plain)), batch, key=key
    )
    assert np.abs(other - found[0]).max() > 1e-4


def test_seeds_side_by_side_are_computed_by_xla():
    """A GPU's kernel would be asked for on this place, and then refused by a CPU."""
    several = {"kind": "deep_ensemble", "samples": 2}
    fused_ = {"attention": "fused"}
    with pytest.raises(UserError, match="deep_ensemble train in one program"):
        tiny.model(tiny.settings("lora", model=fused_, uncertainty=several))
    with pytest.raises(UserError, match="the device is a CPU"):
        one = tiny.model(tiny.settings("lora", model=fused_))
        tiny.predict(one, tiny.params(tiny.settings("lora"), one), tiny.batch())


def test_all_blocks_have_one_size():
    found = fused_attention._blocks(dict, 384)
    assert set(found.values()) == {1, 384}
