"""The model: joins base model, conditioner, hyper-network, LoRA, head and objective.

`adapt` makes the adapter and `classify` uses it. Evaluation runs `adapt` once per
split, and a training step runs it once for all micro-batches.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from hypelora_jax import families, hyper, objectives, trees
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.adapters import patterns, sign
from hypelora_jax.adapters import sites as sites_lib
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import choose
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.hyper import mlp, transformer
from hypelora_jax.hyper.conditioners.instance import POOLED, pooled
from hypelora_jax.keys import mask_key, maybe, named_key
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import PACKED_NAMES, ROW_NAMES
from hypelora_jax.types import (
    Adapter,
    Backbone,
    Batch,
    Conditioner,
    Conditions,
    Head,
    HyperNet,
    Key,
    Lora,
    Method,
    Objective,
    Params,
)

_COND = "cond/(?!(set/)?standard/|noise/|sign/).*"  # not what is drawn or fitted before
_HYPER = ("hyper/(trunk|out)/.*", _COND, "lora/.*", "head/.*", "loss/.*")
# Methods by their name in config.method; learning rates are for MiniLM, batch 32.
METHODS = {
    "full": Method(("backbone/.*", "head/.*", "loss/.*"), None, False, lr=5e-5),
    "lora": Method(("lora/.*", "head/.*", "loss/.*"), None, True, lr=1e-3),
    "lora_frozen_a": Method(("lora/.*/b", "head/.*", "loss/.*"), None, True, lr=1e-3),
    "head": Method(("head/.*", "loss/.*"), None, False, lr=1e-3),
    "hyper_mlp": Method(_HYPER, mlp.NETWORK, True, lr=1e-3),
    "hyper_transformer": Method(_HYPER, transformer.NETWORK, True, lr=3e-4),
}


def method(name: str) -> Method:
    """Return the method of that name.

    Raises:
      UserError: there is no such method.
    """
    return choose(METHODS, name, "method")


class Parts(NamedTuple):
    """The parts of a model; `cond` and `hyper` are None without a hyper-network."""

    backbone: Backbone
    head: Head
    cond: Conditioner | None
    hyper: HyperNet | None
    hyper_sites: Sites  # sites the hyper-network writes
    lora_sites: Sites  # sites with static factors
    scale: patterns.Scale  # these three are the fields of `patterns.Scaling`
    rank: int
    ranks: patterns.Ranks
    num_layers: int
    objective: Objective
    trains: tuple[str, ...]  # path patterns of the trainable tree
    masks: str = "auto"  # what draws the masks of dropout


Compact = list[tuple[Sites, Lora]]  # compact factors on disjoint layers, unscaled


class InitModel(Protocol):
    """Draws the parameters that a base model does not have."""

    def __call__(self, key: Key, base: Params | None = None, /) -> Params:
        """Return the whole tree; `backbone` and `head` are those of `base`, if given.

        Without a base model they are drawn, too.
        """


class Adapt(Protocol):
    """Makes the adapter of a batch, placed on all layers and scaled."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        alpha: jax.Array | float,
        key: Key | None = None,
    ) -> Adapter:
        """Return factors for all rows, or for each of the U conditions of the batch."""


class Classify(Protocol):
    """Runs the adapted backbone and the head."""

    def __call__(
        self, params: Params, adapter: Adapter, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        """Return logits (B, Y), at least float32; dropout differs between rows."""


class Model(NamedTuple):
    """A model's pure functions; all its state is the parameter tree."""

    parts: Parts
    init: InitModel
    adapt: Adapt
    classify: Classify

    def split(self, params: Params) -> tuple[Params, Params]:
        """Split the parameters into (trainable, frozen), as the method says."""
        return trees.partition(params, trees.matcher(self.parts.trains))

    @property
    def reads(self) -> tuple[str, ...]:
        """Batch entries that `adapt` reads; () if one adapter serves all batches."""
        reads = () if self.parts.cond is None else tuple(self.parts.cond.reads)
        rows = ROW_NAMES if POOLED in reads else ()  # `conditions` pools their states
        given = tuple(name for name in reads if name != POOLED)
        return (*given, "row", *rows) if given else rows

    @property
    def objective(self) -> Objective:
        """What the model learns and how it is judged."""
        return self.parts.objective


def build(settings: Settings, config: EncoderConfig, task: Task) -> Model:
    """Build a model from the settings, the base model's sizes and the task.

    Raises:
      UserError: a name in the settings is in no table, or a choice does not fit the
        base model or the task.
    """
    family, chosen = families.of(config), method(settings.method)
    sites, scaling = {}, patterns.NONE
    if chosen.adapts:
        dims, names = family.sites(config), family.names
        sites = sites_lib.sites(settings.lora, dims, config.layers, names.modules)
        scaling = patterns.scaling(settings.lora, sites, config.layers, names.full)
    cond, network, own = _network(settings, config, task, sites, scaling.rank)
    lowest = min((min(site.layers) for site in sites.values()), default=0)
    objective = objectives.of(task, settings.loss)
    parts = Parts(
        families.backbone(settings, config, lowest),
        families.head(settings.head, config, task, dtype=settings.model.dtype),
        cond,
        network,
        own,
        sites_lib.without(sites, own),
        *scaling,
        config.layers,
        objective,
        objectives.trained(objective, chosen.trains),
        settings.model.masks,
    )
    return of_parts(parts)


def _network(
    settings: Settings, config: EncoderConfig, task: Task, sites: Sites, rank: int
) -> tuple[Conditioner | None, HyperNet | None, Sites]:
    """Build (conditioner, hyper-network, its sites); (None, None, {}) without one."""
    network = method(settings.method).network
    if network is None:
        return None, None, {}
    own = sites_lib.restrict(sites, settings.hyper.layers, config.layers)
    slots = network.slots(settings.hyper, own)
    sizes = hyper.Sizes(slots, task.condition, task.tasks, config.width)
    cond = hyper.conditioner(settings, own, sizes)
    made = network.build(settings.hyper, settings.blend, own, rank, cond.width)
    return cond, made, own


def of_parts(parts: Parts) -> Model:
    """Build the functions of a model from its parts."""

    def init(key: Key, base: Params | None = None) -> Params:
        whole = jax.jit(lambda key: _drawn(parts, key, base is None))(key)
        return {**(base or {}), **whole}

    def adapt(
        params: Params, batch: Batch, alpha: jax.Array | float, key: Key | None = None
    ) -> Adapter:
        found = conditions(parts, params, batch, maybe(key, "cond"))
        made = compact(parts, params, found, alpha, maybe(key, "hyper"))
        folded = lora_lib.fold(lora_lib.place(made, parts.num_layers), parts.scale)
        folded = sign.joined(folded, found)
        if found is None or len(found.vectors_USC) == 1:
            return Adapter(folded)
        return Adapter(folded, found.row_B)

    def classify(
        params: Params, adapter: Adapter, batch: Batch, key: Key | None = None
    ) -> jax.Array:
        if key is not None:
            key = mask_key(key, parts.masks, rules.on_one_accelerator())
        hidden_BTD = hidden(parts, params, adapter, batch, maybe(key, "backbone"))
        head, own = params["head"], maybe(key, "head")
        return sign.signed(parts.head.apply(head, hidden_BTD, batch, own), adapter)

    return Model(parts, init, adapt, classify)


def hidden(
    parts: Parts, params: Params, adapter: Adapter, batch: Batch, key: Key | None
) -> jax.Array:
    """Return the last hidden states that the head reads, (B, 1, D); packed (B, P, D).

    With several conditions each row has a key; no dropout depends on other rows.
    """
    factors, row_B = sign.without(adapter.factors), adapter.row_B
    rows = {n: batch[n] for n in (*ROW_NAMES, *PACKED_NAMES) if n in batch}
    if key is None or parts.masks != "threefry":  # which draws as older versions did
        rows.setdefault("first", jnp.zeros((len(rows["ids"]), 1), jnp.int32))
    if key is not None and lora_lib.has_conditions(factors):
        key = jax.random.split(key, len(rows["ids"]))
    return parts.backbone.apply(params["backbone"], factors, rows, key, row_B)


def conditions(
    parts: Parts, params: Params, batch: Batch, key: Key | None = None
) -> Conditions | None:
    """Return the conditions of a batch, or None without a hyper-network."""
    if parts.cond is None:
        return None
    if POOLED in parts.cond.reads:  # the bare backbone: no adapter and no dropout
        hidden_BTD = parts.backbone.apply(params["backbone"], {}, batch)
        batch = {**batch, POOLED: pooled(hidden_BTD, batch["mask"])}
    return parts.cond.apply(params.get("cond", {}), batch, key)


def compact(
    parts: Parts,
    params: Params,
    found: Conditions | None,
    alpha: jax.Array | float,
    key: Key | None = None,
) -> Compact:
    """Return the compact, unscaled factors of all sites, generated ones first.

    The network runs once per condition. One condition gives factors without axis U.
    Factors are zero beyond the rank of their site, which gets no gradient there.
    """
    made, several = [], 1 if found is None else len(found.vectors_USC)
    if parts.hyper is not None and found is not None:
        network, vectors_USC = parts.hyper, found.vectors_USC

        def write(cond_SC: jax.Array) -> Lora:
            lora = network.apply(params["hyper"], cond_SC, alpha, key)
            return lora_lib.masked(lora, parts.hyper_sites, parts.ranks)

        over = jax.vmap(write, out_axes=1)  # a_LUIR: U comes after the layers
        own = write(vectors_USC[0]) if several == 1 else over(vectors_USC)
        made.append((parts.hyper_sites, own))
    if parts.lora_sites:
        static = lora_lib.masked(params["lora"], parts.lora_sites, parts.ranks)
        shared = static if several == 1 else lora_lib.repeated(static, several)
        made.append((parts.lora_sites, shared))
    return made


def _drawn(parts: Parts, key: Key, base: bool) -> Params:
    """Draw `cond`, `hyper`, `lora` and `loss`, each only if the model has it.

    With `base`, draw the backbone and the head, too.
    """
    params: Params = {}
    if base:
        of_base = named_key(key, "base")
        params["backbone"] = parts.backbone.init(named_key(of_base, "backbone"))
        params["head"] = parts.head.init(named_key(of_base, "head"))
    if parts.hyper is not None and parts.cond is not None:
        params["hyper"] = parts.hyper.init(named_key(key, "hyper"))
        if cond := parts.cond.init(named_key(key, "cond")):
            params["cond"] = cond
    if parts.lora_sites:
        lora_key = named_key(key, "lora")
        drawn = lora_lib.init(lora_key, parts.lora_sites, parts.rank)
        params["lora"] = lora_lib.masked(drawn, parts.lora_sites, parts.ranks)
    if loss := parts.objective.init(named_key(key, "loss")):
        params["loss"] = loss
    return params
