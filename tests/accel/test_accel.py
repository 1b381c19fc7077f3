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


@pytest.mark.parametrize("method", ["lora", "hyper_mlp", "hyper_transformer"])
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
