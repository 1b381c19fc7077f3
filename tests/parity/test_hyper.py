"""A and B of every hyper-network of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import golden

from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import LoraConfig, Settings
from hypelora_jax.interop.reference import by_slot


def _stack(lora: dict, factor: str) -> np.ndarray:
    return np.concatenate([np.asarray(f[factor]) for f in lora.values()])


@pytest.mark.parametrize("name", golden.HYPERNETS)
def test_emitted_factors(name):
    case = golden.HYPERNETS[name]
    z = golden.load(f"{name}.npz")
    method, hyper = golden.hyper_config(case)
    settings = Settings(
        method=method, hyper=hyper, lora=LoraConfig(rank=case["lora_r"])
    )
    model = golden.build(settings)
    params = golden.hyper_tensors(settings, model, golden.under(z, "w/"))
    if hyper.a != "generated":
        params["hyper"]["a"] = by_slot(z["A"], model.parts.hyper_sites)
    params = golden.cast(params, "float32")
    cond = model.parts.cond.apply(params["cond"], {}).vectors_USC[0]
    lora = jax.jit(model.parts.hyper.apply)(params["hyper"], cond, jnp.zeros(()))
    golden.close(_stack(lora, "a"), z["A"], 5e-6, "A")
    golden.close(_stack(lora, "b"), z["B"], 5e-6, "B")


@pytest.mark.parametrize("name", golden.MODELS)
def test_emitted_factors_of_models(name):
    case, z = golden.MODELS[name], golden.load(name)
    settings = golden.model_settings(case, "float32", blend=False)
    model: model_lib.Model = golden.build(settings)
    params = golden.cast(golden.case_params(settings, model, z), "float32")
    cond = model.parts.cond.apply(params["cond"], {}).vectors_USC[0]
    lora = jax.jit(model.parts.hyper.apply)(params["hyper"], cond, jnp.zeros(()))
    golden.close(_stack(lora, "a"), z["A"], 5e-6, "A")
    golden.close(_stack(lora, "b"), z["B"], 5e-6, "B")
