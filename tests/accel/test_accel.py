"""Parity, three steps and sharded-equals-unsharded on whatever devices JAX finds.

`make accel` runs this with -s; on a machine with only a CPU it says so.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from parity import golden

from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks.attention import attention
from hypelora_jax.model import METHODS
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train import optimizer
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step


@pytest.fixture(scope="module", autouse=True)
def devices():
    found = jax.devices()
    print("\ndevices:", ", ".join(f"{d.platform} {d.device_kind}" for d in found))
    if found[0].platform == "cpu":
        print("no accelerator here: everything below ran on the CPU")
    with jax.default_matmul_precision("highest"):  # TF32 and bf16 passes are not parity
        yield found


@pytest.mark.parametrize("name", golden.MODELS)
def test_parity_of_logits(name):
    z = golden.load(name)
    settings = golden.model_settings(golden.MODELS[name], "float32")
    model = golden.build(settings)
    params = golden.cast(golden.case_params(settings, model, z), "float32")
    alpha = jnp.asarray(golden.MODELS[name]["noise_alpha"], jnp.float32)
    got = tiny.predict(model, params, golden.batch(), alpha)
    golden.close(got, z["logits"], 1e-5, "logits")


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_sharded_and_not(method, devices):
    config = tiny.settings(method)
    model = tiny.model(config)
    params = tiny.params(config, model)
    batch = tiny.batch(rows=2 * len(devices))
    losses = []
    for mesh in (
        make_mesh(MeshConfig(), devices[:1]),
        make_mesh(MeshConfig(), devices),
    ):
        tx = optimizer.optimizer(config.optim, 3)
        step = build_step(
            model, tx, optimizer.blend_alpha(config.blend, 3), mesh, deterministic=True
        )
        trainable, frozen = model.split(params)
        state = init_state(trainable, tx, jax.random.key(0))
        for _ in range(3):
            state, info = step(state, frozen, batch)
            losses.append(float(info["loss"]))
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-5)
    print(f"{method}: losses {losses[:3]}")


@pytest.mark.parametrize("tokens", [64, 127, 512])
def test_fused_attention_equals_xla(tokens, devices):
    """In bfloat16, to the rounding of the probabilities; a CPU refuses it."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape, heads = (4, tokens, 256), 4
    q, k, v, weight = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    mask = np.ones((4, tokens), bool)
    mask[0, tokens // 2 :], mask[1], mask[2, 3] = False, False, False

    def both(asked):
        def total(q, k, v):
            out = attention(q, k, v, jnp.asarray(mask), heads, 0.0, None, asked)
            return jnp.sum(out * weight, dtype=jnp.float32), out

        run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
        (_, out), gradients = run(q, k, v)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    if devices[0].platform == "cpu":
        with pytest.raises(UserError, match="the device is a CPU"):
            both("fused")
        return
    for got, wanted in zip(both("fused"), both("xla"), strict=True):
        largest = np.abs(wanted).max()
        assert np.isfinite(got).all() and largest > 0.1
        np.testing.assert_allclose(got, wanted, atol=0.02 * largest)


def test_a_step_with_fused_attention_has_the_loss_of_xla(devices):
    losses = {}
    for asked in ("xla", "auto" if devices[0].platform == "cpu" else "fused"):
        given = {"attention": asked, "attention_dropout": 0.0, "dtype": "bfloat16"}
        config = tiny.settings("lora", model=given)
        model, mesh = tiny.model(config), make_mesh(MeshConfig(), devices[:1])
        tx = optimizer.optimizer(config.optim, 3)
        alpha = optimizer.blend_alpha(config.blend, 3)
        step = build_step(model, tx, alpha, mesh, deterministic=True)
        trainable, frozen = model.split(tiny.params(config, model))
        state = init_state(trainable, tx, jax.random.key(0))
        _, info = step(state, frozen, tiny.batch(rows=4))
        losses[asked] = float(info["loss"])
    one, other = losses.values()
    assert one == pytest.approx(other, rel=0.02)
    print(f"losses {losses}")
