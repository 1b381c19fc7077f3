"""Train and predict steps lower for GPU and TPU on this CPU."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import export

from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train import optimizer, scoring
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "hyper_mlp", "hyper_transformer"])
def test_steps_export(method, dtype):
    config = tiny.settings(method, model={"dtype": dtype})
    model = tiny.model(config)
    trainable, frozen = model.split(tiny.params(config, model))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optimizer.optimizer(config.optim, 10)
    step = build_step(model, tx, optimizer.blend_alpha(config.blend, 10), mesh)
    state = init_state(trainable, tx, jax.random.key(0))
    batch = tiny.batch()
    platforms = ["cuda", "tpu"]
    exported = export.export(step, platforms=platforms)(state, frozen, batch)
    assert exported.platforms == ("cuda", "tpu")
    forward = scoring.forward(model, mesh)
    params = trainable | frozen if method == "lora" else {**frozen, **trainable}
    alpha = jnp.zeros(())
    adapt = export.export(forward.adapt, platforms=platforms)(params, alpha, {})
    lora = forward.adapt(params, alpha, {})
    rows = {n: batch[n] for n in ("ids", "mask", "types")}
    classify = export.export(forward.classify, platforms=platforms)(params, lora, rows)
    assert adapt.platforms == classify.platforms == ("cuda", "tpu")
    assert classify.out_avals[0].shape == (4, tiny.CLASSES)
