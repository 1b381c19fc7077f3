"""From settings and a base model to a predictor and its parameter tree."""

from typing import NamedTuple

import jax

from hypelora_jax import lora as lora_lib
from hypelora_jax import trees
from hypelora_jax.calibration import losses
from hypelora_jax.hyper import mlp, transformer
from hypelora_jax.hyper.conditioning import cond_width, conditioner
from hypelora_jax.interop.hf import HF_MODULES
from hypelora_jax.models.encoder import encoder
from hypelora_jax.models.heads import head
from hypelora_jax.models.presets import EncoderConfig, site_dims
from hypelora_jax.predict import Parts, Predictor, predictor
from hypelora_jax.rng import named_key
from hypelora_jax.settings import Settings
from hypelora_jax.types import Key, Loss, Params

TRAINS = {  # paths of the trainable leaves, by method
    "full": ("backbone/.*", "head/.*", "loss/.*"),
    "lora": ("lora/.*", "head/.*", "loss/.*"),
    "lora_frozen_a": ("lora/.*/b", "head/.*", "loss/.*"),
    "head": ("head/.*", "loss/.*"),
    "hyper_mlp": ("hyper/(trunk|out)/.*", "cond/.*", "lora/.*", "head/.*", "loss/.*"),
}
TRAINS["hyper_transformer"] = TRAINS["hyper_mlp"]
HYPER = {"hyper_mlp": mlp, "hyper_transformer": transformer}


class Model(NamedTuple):
    """A model's functions; all its state is the parameter tree."""

    parts: Parts
    predictor: Predictor
    loss: Loss
    rank: int


def _hyper_parts(settings: Settings, sites: lora_lib.Sites, num_layers: int) -> tuple:
    """(conditioner, hyper-network, its sites), or Nones without a hyper-network."""
    if settings.method not in HYPER:
        return None, None, {}
    own = lora_lib.restrict(sites, settings.hyper.layers, num_layers)
    module, config = HYPER[settings.method], settings.hyper
    slots = module.slots(config, own)
    width = cond_width(config.cond, slots, config.cond_dim)
    build = {
        "hyper_mlp": mlp.mlp_hyper,
        "hyper_transformer": transformer.transformer_hyper,
    }
    hyper = build[settings.method](
        config, settings.blend, own, settings.lora.rank, width
    )
    own_cond = settings.uncertainty.kind == "hyper_ensemble"
    members = settings.uncertainty.samples if own_cond else 1
    return conditioner(config.cond, slots, config.cond_dim, members), hyper, own


def build(settings: Settings, config: EncoderConfig, num_outputs: int) -> Model:
    """The model's functions, from settings and the shape of the base model.

    Args:
      num_outputs: number of classes; 1 makes a regression head and loss.
    """
    adapted = settings.method not in ("full", "head")
    names = HF_MODULES[config.family]
    sites = (
        lora_lib.sites(settings.lora, site_dims(config), config.layers, names)
        if adapted
        else {}
    )
    cond, hyper, hyper_sites = _hyper_parts(settings, sites, config.layers)
    model, dtype = settings.model, settings.model.dtype
    dropout = settings.lora.dropout
    parts = Parts(
        encoder(config, dtype=dtype, remat=model.remat, lora_dropout=dropout),
        head(config, num_outputs, dtype=dtype),
        cond,
        hyper,
        hyper_sites,
        lora_lib.without(sites, hyper_sites),
        lora_lib.scale(settings.lora),
        config.layers,
    )
    loss = losses.build(settings.loss, regression=num_outputs == 1)
    return Model(parts, predictor(parts), loss, settings.lora.rank)


def init_params(model: Model, key: Key, base: Params) -> Params:
    """The whole tree: the base's `backbone` and `head`, the rest drawn from `key`."""
    return {**base, **jax.jit(lambda key: _fresh(model, key))(key)}


def _fresh(model: Model, key: Key) -> Params:
    """`cond`, `hyper`, `lora` and `loss`, each only if the model has it."""
    parts, params = model.parts, {}
    if parts.hyper is not None:
        params["hyper"] = parts.hyper.init(named_key(key, "hyper"))
        if cond := parts.cond.init(named_key(key, "cond")):
            params["cond"] = cond
    if parts.lora_sites:
        params["lora"] = lora_lib.init(
            named_key(key, "lora"), parts.lora_sites, model.rank
        )
    if loss := model.loss.init(named_key(key, "loss")):
        params["loss"] = loss
    return params


def split(settings: Settings, params: Params) -> tuple[Params, Params]:
    """(trainable, frozen) by the method."""
    return trees.partition(params, trees.matcher(TRAINS[settings.method]))
