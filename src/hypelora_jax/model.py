"""From settings and a base model to a predictor and its parameter tree."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from hypelora_jax import trees
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.adapters.lora import Sites
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import choose
from hypelora_jax.families.encoder import encoder
from hypelora_jax.families.sequence_head import head
from hypelora_jax.families.sizes import EncoderConfig, site_dims
from hypelora_jax.hyper import mlp, transformer
from hypelora_jax.hyper.conditioners import cond_width, conditioner
from hypelora_jax.interop.huggingface import HF_MODULES
from hypelora_jax.keys import maybe, named_key
from hypelora_jax.objectives import training_loss
from hypelora_jax.types import (
    Backbone,
    Batch,
    Conditioner,
    Head,
    HyperNet,
    Key,
    Lora,
    Loss,
    Params,
)

TRAINS = {  # paths of the trainable leaves, by method
    "full": ("backbone/.*", "head/.*", "loss/.*"),
    "lora": ("lora/.*", "head/.*", "loss/.*"),
    "lora_frozen_a": ("lora/.*/b", "head/.*", "loss/.*"),
    "head": ("head/.*", "loss/.*"),
    "hyper_mlp": ("hyper/(trunk|out)/.*", "cond/.*", "lora/.*", "head/.*", "loss/.*"),
}
TRAINS["hyper_transformer"] = TRAINS["hyper_mlp"]
METHODS = TRAINS
HYPER = {"hyper_mlp": mlp, "hyper_transformer": transformer}


class Parts(NamedTuple):
    """What a model is made of; `cond` and `hyper` are None without a hyper-network."""

    backbone: Backbone
    head: Head
    cond: Conditioner | None
    hyper: HyperNet | None
    hyper_sites: Sites  # sites the hyper-network writes
    lora_sites: Sites  # sites with static factors
    scale: float  # alpha / rank
    num_layers: int


class Predictor(NamedTuple):
    """Pure functions of a model.

    compact(params, batch, alpha, key=None) -> list of (sites, compact lora), unscaled
    adapt(params, batch, alpha, key=None) -> lora, placed on all layers and scaled;
      every leaf has a leading B where the conditioning is per example, or where
      batch["member"], int32 (B,), says which of cond_KSC each row takes
    classify(params, lora, batch, key=None) -> logits_BY, at least float32
    predict(trainable, frozen, batch, alpha, key=None) -> logits_BY
    """

    compact: Callable
    adapt: Callable
    classify: Callable
    predict: Callable


def is_per_example(lora: Lora) -> bool:
    """Whether a placed adapter has a leading batch axis (a_BLIR instead of a_LIR)."""
    return any(x.ndim == 4 for x in jax.tree.leaves(lora))


def predictor(parts: Parts) -> Predictor:
    """The functions of a model made of `parts`."""

    def compact(
        params: Params, batch: Batch, alpha: jax.Array, key: Key | None = None
    ) -> list[tuple[Sites, Lora]]:
        cond = _condition(parts, params, batch)
        return _write(parts, params, cond, alpha, maybe(key, "hyper"))

    def adapt(
        params: Params, batch: Batch, alpha: jax.Array, key: Key | None = None
    ) -> Lora:
        key, cond = maybe(key, "hyper"), _condition(parts, params, batch)

        def one(cond_SC: jax.Array | None) -> Lora:
            made = _write(parts, params, cond_SC, alpha, key)
            return lora_lib.fold(lora_lib.place(made, parts.num_layers), parts.scale)

        if cond is None or cond.ndim == 2:
            return one(cond)
        lora = jax.vmap(one)(cond)
        if "member" not in batch:
            return lora
        # the network ran once a member, not once a row
        return jax.tree.map(lambda x: x[batch["member"]], lora)

    def classify(
        params: Params, lora: Lora, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        rows = {n: batch[n] for n in ("ids", "mask", "types")}
        encode = _per_example if is_per_example(lora) else _shared
        hidden_BTD = encode(
            parts, params["backbone"], lora, rows, maybe(key, "backbone")
        )
        return parts.head.apply(params["head"], hidden_BTD, maybe(key, "head"))

    def predict(
        trainable: Params,
        frozen: Params,
        batch: Batch,
        alpha: jax.Array,
        key: Key | None = None,
    ) -> jax.Array:
        params = trees.union(trainable, frozen)
        return classify(params, adapt(params, batch, alpha, key), batch, key)

    return Predictor(compact, adapt, classify, predict)


def _condition(parts: Parts, params: Params, batch: Batch) -> jax.Array | None:
    """cond_SC, or cond_BSC per example; None without a hyper-network."""
    if parts.hyper is None:
        return None
    return parts.cond.apply(params.get("cond", {}), batch)


def _write(
    parts: Parts,
    params: Params,
    cond_SC: jax.Array | None,
    alpha: jax.Array,
    key: Key | None,
) -> list[tuple[Sites, Lora]]:
    """Compact factors of all sites, generated ones first, unscaled."""
    made = []
    if parts.hyper is not None:
        lora = parts.hyper.apply(params["hyper"], cond_SC, alpha, key)
        made.append((parts.hyper_sites, lora))
    if parts.lora_sites:
        made.append((parts.lora_sites, params["lora"]))
    return made


def _shared(
    parts: Parts, params: Params, lora: Lora, rows: Batch, key: Key | None
) -> jax.Array:
    """Hidden states where all rows have one adapter."""
    return parts.backbone.apply(params, lora, rows, key)


def _per_example(
    parts: Parts, params: Params, lora: Lora, rows: Batch, key: Key | None
) -> jax.Array:
    """Hidden states where each row has its own factors: x A B, never a dense delta."""
    if key is None:
        return jax.vmap(parts.backbone.apply, (None, 0, 0, None))(
            params, lora, rows, None
        )
    keys = jax.random.split(key, rows["ids"].shape[0])  # one key: equal dropout
    return jax.vmap(parts.backbone.apply, (None, 0, 0, 0))(params, lora, rows, keys)


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
    slots, source = module.slots(config, own), settings.condition.source
    width = cond_width(config.cond, slots, config.cond_dim, source)
    build = {
        "hyper_mlp": mlp.mlp_hyper,
        "hyper_transformer": transformer.transformer_hyper,
    }
    hyper = build[settings.method](
        config, settings.blend, own, settings.lora.rank, width
    )
    own_cond = settings.uncertainty.kind == "hyper_ensemble"
    members = settings.uncertainty.samples if own_cond else 1
    cond = conditioner(config.cond, slots, config.cond_dim, members, source)
    return cond, hyper, own


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
    loss = training_loss.build(settings.loss, regression=num_outputs == 1)
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
    trains = choose(METHODS, settings.method, "config.method")
    return trees.partition(params, trees.matcher(trains))
