"""Imports a peft adapter or the reference's hyper-network as a run at step 0."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import families, files
from hypelora_jax import model as model_lib
from hypelora_jax.config import settings as settings_lib
from hypelora_jax.config.sections import AMode
from hypelora_jax.config.settings import BlendConfig, DataConfig, HyperConfig, Settings
from hypelora_jax.data.tables import Corpus
from hypelora_jax.data.tasks import Task, unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.exchange import imported_run
from hypelora_jax.interop import adapter, peft, reference_state
from hypelora_jax.interop import base as bases
from hypelora_jax.interop.huggingface import read_tensors
from hypelora_jax.interop.tensor_paths import head_names
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train.session import open_session
from hypelora_jax.types import Params


class Source(NamedTuple):
    """The files of an adapter and its base model, before the model is built."""

    fields: Mapping[str, Any]  # adapter_config.json
    tensors: Mapping[str, np.ndarray]  # by plain name
    note: dict[str, Any] | None  # RECORD, if our export wrote the adapter
    base: bases.Base


def import_adapter(
    adapter_dir: str,
    workdir: str,
    model: str = "",
    config: Settings | None = None,
    factors: str = "",
) -> epath.Path:
    """Make a run folder from an adapter, to predict with, export or train further.

    Args:
      adapter_dir: folder with adapter_config.json and adapter_model.safetensors.
      workdir: folder that does not exist or is empty.
      model: the base model; "" takes the one that the adapter names.
      config: gives data, optimizer and loss; method, model and lora come from the
        adapter. None takes the config that our export recorded. If there is none, the
        run has no data: it predicts and exports but cannot be evaluated or trained.
      factors: .npz with arrays that the reference does not save (A, initial_A,
        initial_B).

    Raises:
      UserError: the adapter is not plain LoRA, or it does not fit the base or the data.
    """
    run = Run.create(workdir)
    files.check_empty(run.path, "--workdir", workdir)
    source = _source(epath.Path(files.user_path(adapter_dir, "adapter")), model)
    wanted = records.located(_begun(source, config))
    corpus = imported_run.corpus_of(wanted, asked=config is not None)
    if reference_state.is_reference(source.tensors):
        settings, own = _of_reference(source, wanted, config, factors)
    else:
        settings, own = _of_lora(source, wanted)
    task = _task(source, corpus)
    session = open_session(settings, task, source.base.revision or None)
    imported_run.begin(imported_run.with_params(session, own), corpus, run, source.note)
    logging.info("imported %s into %s as step 0 of a run", adapter_dir, workdir)
    return run.path


def _source(path: epath.Path, model: str) -> Source:
    fields, tensors = peft.read(path)
    note = imported_run.note_of(path)
    name = model or fields.get("base_model_name_or_path") or ""
    if not name:
        raise UserError(f"{path} does not name its base model; expected --model=PATH")
    revision = "main" if model else fields.get("revision") or "main"
    name = "minilm" if name == bases.MINILM else name
    return Source(fields, tensors, note, bases.resolve(name, revision))


def _begun(source: Source, config: Settings | None) -> Settings:
    """Settings of the run before the adapter's LoRA or hyper-network is read."""
    own = config
    if own is None and source.note is not None:
        own = settings_lib.from_dict(source.note["config"])
    if own is None:
        longest = min(
            DataConfig().max_length,
            families.of(source.base.config).max_tokens(source.base.config),
        )
        own = Settings(data=DataConfig(source="files", max_length=longest))
    path = imported_run.model_path(source.base)
    model = dataclasses.replace(own.model, path=path)
    if not source.base.revision:
        model = dataclasses.replace(model, revision="main")
    # the factors are static, so a method that generates them cannot train further
    own = dataclasses.replace(own, data=dataclasses.replace(own.data, condition=""))
    known = model_lib.method(own.method)
    static = known.adapts and known.network is None
    return Settings(
        method=own.method if static else "lora",
        model=model,
        loss=own.loss,
        **{name: getattr(own, name) for name in imported_run.KEPT},
    )


def _of_lora(source: Source, wanted: Settings) -> tuple[Settings, Params]:
    """Settings, and the parts of the tree that come from an ordinary adapter."""
    got = adapter.from_peft(source.base.config, source.fields, source.tensors)
    own: Params = {"lora": got.factors, "head": got.head}
    if got.head_deltas:
        own["head_deltas"] = got.head_deltas
    return dataclasses.replace(wanted, lora=got.lora), own


def _of_reference(
    source: Source, wanted: Settings, config: Settings | None, factors: str
) -> tuple[Settings, Params]:
    """Settings, and the parts of the tree that come from a reference hyper-network."""
    adapter.check_kind(source.fields)
    for name in ("rank_pattern", "alpha_pattern"):
        if got := source.fields.get(name):
            raise UserError(
                f"the adapter has {name}={got}; expected one rank and alpha for all "
                "sites of a hyper-network of the reference"
            )
    base, fields = source.base.config, source.fields
    state = reference_state.sort(source.tensors, families.of(base))
    hyper = config.hyper if config else HyperConfig(a="fixed")
    a: AMode = "random" if config and hyper.a == "random" else "fixed"
    rank = int(fields["r"])
    method, hyper = reference_state.config_of(state, rank, base.width, a, hyper.heads)
    if hyper.a != "generated":
        hyper = dataclasses.replace(hyper, a_init="reference")
    # the initial factors keep the weight that they had at the end of training
    blend = dataclasses.replace(
        config.blend if config else BlendConfig(), anneal="none"
    )
    static = {n: x for n, x in state.others.items() if ".lora_" in n}
    head = {n: x for n, x in state.others.items() if ".lora_" not in n}
    own: Params = {"head": adapter.head_of(base, head)}
    layers = state.layers
    if static:
        got = adapter.from_peft(base, fields, static)
        own["lora"] = got.factors
        layers = tuple(
            sorted({*layers, *(i for s in got.sites.values() for i in s[2])})
        )
    every = layers == tuple(range(base.layers))
    lora = settings_lib.LoraConfig(
        rank=rank,
        alpha=float(fields["lora_alpha"]),
        rslora=bool(fields.get("use_rslora")),
        dropout=float(fields.get("lora_dropout") or 0),
        targets=state.modules,
        layers=None if every else layers,
    )
    settings = dataclasses.replace(
        wanted, method=method, hyper=hyper, blend=blend, lora=lora
    )
    sites = model_lib.build(settings, base, unnamed(2)).parts.hyper_sites
    own |= reference_state.params_of(
        state, hyper, blend, sites, rank, _extra_factors(factors)
    )
    return settings, own


def _extra_factors(factors: str) -> dict[str, np.ndarray]:
    if not factors:
        return {}
    try:
        with epath.Path(factors).open("rb") as file:
            with np.load(file, allow_pickle=False) as arrays:
                return {
                    n: arrays[n] for n in reference_state.FACTORS if n in arrays.files
                }
    except (OSError, ValueError) as e:
        raise UserError(f"{factors} cannot be read ({e}); expected an .npz file") from e


def _task(source: Source, corpus: Corpus | None) -> Task:
    """Task of the data, else of our record, else made from the number of outputs."""
    outputs = _outputs(source)
    if corpus is not None:
        if corpus.task.num_outputs != outputs:
            raise UserError(
                f"the adapter's head has {outputs} outputs, but the data has "
                f"{corpus.task.num_outputs} ({', '.join(corpus.task.labels)}); "
                "expected the data it was trained for. Choose another --config"
            )
        return corpus.task
    if source.note is not None:
        return records.task_of(source.note)
    return unnamed(outputs, "imported")


def _outputs(source: Source) -> int:
    """Number of outputs of the adapter's head, else of the base model's."""
    config, base = source.base.config, source.base
    name = f"{head_names(config)['out']}.weight"  # this layer has no prefix
    tensors = source.tensors
    if name not in tensors and base.folder is not None:
        tensors = read_tensors(base.folder)
    if name not in tensors:
        raise UserError(
            f"neither the adapter nor {base.name} has a trained head ({name}); "
            "expected the adapter of a sequence classifier. Save it with "
            "modules_to_save=['classifier']"
        )
    return tensors[name].shape[0]
