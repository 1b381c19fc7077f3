"""The golden folder: what the reference computed, read as our settings and parameters.

Every size and case is taken from the folder's index.json.
"""

import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax import families
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import (
    BlendConfig,
    HyperConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    Settings,
)
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.interop import huggingface
from hypelora_jax.interop.reference import by_slot, hyper_params

NAMED = os.environ.get("HYPELORA_GOLDEN")
ROOT = pathlib.Path(NAMED or pathlib.Path(__file__).parents[1] / "golden")
INDEX = json.loads((ROOT / "index.json").read_text())
MODELS = {case["file"]: case for case in INDEX["models"]}
HYPERNETS = INDEX["hypernets"]
BASELINES = {case["file"]: case for case in INDEX["baselines"]}
A_MODES = {"fixed": "fixed", "random": "random", "generated": "generated"}


def load(file: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / file, allow_pickle=False) as z:
        return {k: z[k] for k in z.files}


def under(tensors: dict, prefix: str) -> dict:
    return {k[len(prefix) :]: x for k, x in tensors.items() if k.startswith(prefix)}


def encoder_config():
    return huggingface.load_config(ROOT / "base")


def hyper_config(case: dict) -> tuple[str, HyperConfig]:
    """Method and hyper-network of a case of `hypernets` or `models`."""
    kind = case.get("kind", case.get("hypernet"))
    hidden = case["hidden_dim"]
    common = dict(
        a=A_MODES[case["A"]],
        init="reference",
        cond_dim=case["embedding_dim"],
        a_input=not case.get("embedding_input_only", True),
        layers=tuple(case["hypernet_layers"]) if "hypernet_layers" in case else None,
    )
    if kind == "mlp":
        widths = tuple(hidden if case.get("large", True) else hidden[:1])
        return "hyper_mlp", HyperConfig(widths=widths, **common)
    return "hyper_transformer", HyperConfig(
        width=hidden,
        heads=case["nhead"],
        depth=case.get("num_layers", case.get("hyper_layers")),
        **common,
    )


def optim_config(case: dict) -> OptimConfig:
    o = case["optimizer"]
    warmup, steps = re.search(
        r"linear, warmup (\d+) of (\d+) steps", o["schedule"]
    ).groups()
    assert int(steps) == o["steps"] and o["name"] == "adamw"
    return OptimConfig(
        lr=o["lr"],
        b1=o["b1"],
        b2=o["b2"],
        eps=o["eps"],
        weight_decay=o["weight_decay"],
        decay_all=True,  # as the reference
        warmup=int(warmup) / int(steps),
        clip=o["clip_global_norm"],
    )


def model_settings(case: dict, dtype: str, blend: bool = True) -> Settings:
    """Settings of a case of `models`; without `blend`, factors as emitted."""
    method, hyper = hyper_config(case)
    blending = BlendConfig(
        a=case["noise_A"],
        b=case["noise_B"],
        alpha=case["noise_alpha"],
        anneal="reference",
        b_init="lora" if case["noise_B"] == "multiply" else "zero",
    )
    return Settings(
        method=method,
        model=ModelConfig(dtype=dtype),
        hyper=hyper,
        blend=blending if blend else BlendConfig(),
        lora=LoraConfig(rank=case["lora_r"], alpha=case["lora_alpha"]),
        optim=optim_config(case),
    )


def baseline_settings(case: dict, dtype: str) -> Settings:
    lora = LoraConfig()
    if case["method"] == "lora":
        lora = LoraConfig(
            case["lora_r"], case["lora_alpha"], targets=tuple(case["targets"])
        )
    return Settings(
        method=case["method"],
        model=ModelConfig(dtype=dtype),
        lora=lora,
        optim=optim_config(case),
    )


def build(
    settings: Settings, num_outputs: int = INDEX["num_labels"]
) -> model_lib.Model:
    return model_lib.build(settings, encoder_config(), unnamed(num_outputs))


def base_tensors() -> dict[str, np.ndarray]:
    return huggingface.read_tensors(ROOT / "base")


def base_params(tensors: dict[str, np.ndarray]) -> dict:
    params, _ = huggingface.from_hf(encoder_config(), tensors, INDEX["num_labels"])
    return params


def case_params(settings: Settings, model: model_lib.Model, golden: dict) -> dict:
    """Parameter tree of a case of `models` before training."""
    parts = model.parts
    classifier = {f"classifier.{k}": x for k, x in under(golden, "classifier/").items()}
    params = base_params({**base_tensors(), **classifier})
    params |= hyper_tensors(settings, model, under(golden, "hyper/"))
    if settings.hyper.a != "generated":
        params["hyper"]["a"] = by_slot(golden["A"], parts.hyper_sites)
    order = np.argsort(golden["dyn_layer_id"])
    start = {}
    if settings.blend.a != "replace":
        start["a"] = by_slot(golden["initial_A"][order], parts.hyper_sites)
    if settings.blend.b != "replace":
        start["b"] = by_slot(golden["initial_B"][order], parts.hyper_sites)
    if start:
        params["hyper"]["init"] = start
    if parts.lora_sites:
        params["lora"] = lora_tensors(model, under(golden, "lora/"))
    return params


def hyper_tensors(settings: Settings, model: model_lib.Model, tensors: dict) -> dict:
    """Start weights, gradients or end weights of a hyper-network, as our tree."""
    return hyper_params(
        tensors, settings.hyper, model.parts.hyper_sites, model.parts.rank
    )


def lora_tensors(model: model_lib.Model, tensors: dict) -> dict:
    """Compact static factors from PEFT's tensors; every site must be there once."""
    names = families.of(encoder_config()).names.modules
    return {
        m: {
            f: np.stack([_peft(tensors, names[m], layer, f) for layer in site.layers])
            for f in ("a", "b")
        }
        for m, site in model.parts.lora_sites.items()
    }


def _peft(tensors: dict, name: str, layer: int, factor: str) -> np.ndarray:
    module = re.escape(name.format(layer=layer))
    pattern = re.compile(rf"(.*\.)?{module}\.lora_{factor.upper()}(\.\w+)?\.weight")
    (found,) = (n for n in tensors if pattern.fullmatch(n))
    return np.ascontiguousarray(tensors[found].T)


def head_tree(tensors: dict) -> dict:
    """Gradient of the classifier, float64, as our tree."""
    return {
        ours: {
            "kernel": tensors[f"{theirs}.weight"].T,
            "bias": tensors[f"{theirs}.bias"],
        }
        for ours, theirs in (("dense", "dense"), ("out", "out_proj"))
    }


def batch() -> dict[str, jax.Array]:
    z = load(INDEX["encoder"]["file"])
    ids = jnp.asarray(z["input_ids"], jnp.int32)
    return {
        "ids": ids,
        "mask": jnp.asarray(z["attention_mask"], bool),
        "types": jnp.zeros_like(ids),
        "label": jnp.asarray(z["labels"], jnp.int32),
        "weight": jnp.ones(ids.shape[0], jnp.float32),
    }


def cast(tree, dtype: str):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def close(got, wanted, tolerance: float, name: str = "") -> None:
    """Largest absolute difference at most `tolerance`."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, f"{name}: {got.shape} is not {wanted.shape}"
    worst = np.max(np.abs(got - wanted), initial=0)
    assert worst <= tolerance, f"{name}: off by {worst:.3g}, allowed {tolerance:.3g}"


def relative(got, wanted, tolerance: float, name: str = "") -> None:
    """Largest relative difference at most `tolerance`."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    worst = np.max(np.abs(got - wanted) / np.abs(wanted))
    assert worst <= tolerance, f"{name}: off by {worst:.3g}, allowed {tolerance:.3g}"
