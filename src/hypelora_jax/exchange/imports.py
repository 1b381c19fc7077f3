"""Imports a peft adapter or the reference's hyper-network as a run at step 0."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import families, files
from hypelora_jax import model as model_lib
from hypelora_jax.config import settings as settings_lib
from hypelora_jax.config.adapter_sections import AMode
from hypelora_jax.config.settings import BlendConfig, DataConfig, HyperConfig, Settings
from hypelora_jax.data import npz
from hypelora_jax.data.tasks import Task, unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.exchange import classifier_labels, imported_run
from hypelora_jax.interop import adapter, peft, reference_state
from hypelora_jax.interop import base as bases
from hypelora_jax.interop.huggingface import read_tensors
from hypelora_jax.interop.peft_config import PeftConfig
from hypelora_jax.interop.tensor_paths import head_names
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train.session import open_session
from hypelora_jax.types import Params


class Source(NamedTuple):
    """The files of an adapter and its base model, before the model is built."""

    fields: PeftConfig
    tensors: Mapping[str, np.ndarray]  # by plain name
    note: imported_run.Note | None  # if our export wrote the adapter
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
    outputs = _outputs(source)
    labels = _labels(source, outputs)
    corpus = imported_run.corpus_of(wanted, asked=config is not None)
    if corpus is not None:
        _check_outputs(outputs, corpus.task)
        if not _renamed(source, labels, corpus.task.labels):
            wanted, corpus = imported_run.with_classes(wanted, corpus, labels)
    if reference_state.is_reference(source.tensors):
        settings, own = _of_reference(source, wanted, config, factors)
    else:
        settings, own = _of_lora(source, wanted)
    task = corpus.task if corpus is not None else _task(source, labels)
    session = open_session(settings, task, source.base.revision or None)
    imported_run.begin(imported_run.with_params(session, own), corpus, run, source.note)
    logging.info("imported %s into %s as step 0 of a run", adapter_dir, workdir)
    return run.path


def _source(path: epath.Path, model: str) -> Source:
    fields, tensors = peft.read(path)
    note = imported_run.note_of(path)
    name = model or fields.base
    if not name:
        raise UserError(f"{path} does not name its base model; expected --model=PATH")
    revision = "main" if model else fields.revision or "main"
    name = "minilm" if name == bases.MINILM else name
    return Source(fields, tensors, note, bases.resolve(name, revision))


def _begun(source: Source, config: Settings | None) -> Settings:
    """Settings of the run before the adapter's LoRA or hyper-network is read."""
    own = config
    if own is None and source.note is not None:
        own = source.note.settings
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
    return dataclasses.replace(wanted, lora=got.lora), _parts(got)


def _parts(got: adapter.Adapter) -> Params:
    """The parts of the tree that an adapter brings."""
    own: Params = {"head": got.head}
    if got.factors:
        own["lora"] = got.factors
    if got.head_deltas:
        own["head_deltas"] = got.head_deltas
    return own


def _of_reference(
    source: Source, wanted: Settings, config: Settings | None, factors: str
) -> tuple[Settings, Params]:
    """Settings, and the parts of the tree that come from a reference hyper-network."""
    for name in ("rank_pattern", "alpha_pattern"):
        if got := getattr(source.fields, name):
            raise UserError(
                f"the adapter has {name}={got}; expected one rank and alpha for all "
                "sites of a hyper-network of the reference"
            )
    base, fields = source.base.config, source.fields
    state = reference_state.sort(source.tensors, families.of(base))
    hyper = config.hyper if config else HyperConfig(a="fixed")
    a: AMode = "random" if config and hyper.a == "random" else "fixed"
    rank = fields.rank
    method, hyper = reference_state.config_of(state, rank, base.width, a, hyper.heads)
    if hyper.a != "generated":
        hyper = dataclasses.replace(hyper, a_init="reference")
    # the initial factors keep the weight that they had at the end of training
    blend = dataclasses.replace(
        config.blend if config else BlendConfig(), anneal="none"
    )
    full = families.of(base).names.full
    generated = [full[m].format(layer=i) for m in state.modules for i in state.layers]
    got = adapter.from_peft(base, fields, state.others, generated)
    own = _parts(got)
    layers = {*state.layers, *(i for s in got.sites.values() for i in s.layers)}
    lora = settings_lib.LoraConfig(
        rank=rank,
        alpha=fields.alpha,
        rslora=fields.rslora,
        dropout=fields.dropout,
        targets=state.modules,
        layers=None if len(layers) == base.layers else tuple(sorted(layers)),
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
    arrays = npz.read(factors)
    return {n: arrays[n] for n in reference_state.FACTORS if n in arrays}


def _check_outputs(outputs: int, task: Task) -> None:
    """Check that the head has an output for each class of the data."""
    if task.num_outputs > outputs:
        raise UserError(
            f"the adapter's head has {outputs} outputs, but the data has "
            f"{task.num_outputs} ({', '.join(task.labels)}); expected the data it was "
            "trained for. Choose another --config"
        )


def _labels(source: Source, outputs: int) -> tuple[str, ...]:
    """Labels of the adapter's outputs: those of our record, else the base model's."""
    if source.note is not None:
        return source.note.task.labels
    return classifier_labels.of_adapter(source.base, outputs)


def _renamed(source: Source, labels: Sequence[str], found: Sequence[str]) -> bool:
    """Whether the data names all classes of our own export anew, which is warned of.

    Such an adapter is taken to other data, whose classes keep their order.
    """
    folded = {name.casefold() for name in labels}
    known = any(name.isdigit() or name.casefold() in folded for name in found)
    if source.note is None or known or len(labels) != len(found) or not found:
        return False
    pairs = (f"{a} = {b}" for a, b in zip(labels, found, strict=True))
    logging.warning(
        "the classes of the data are other ones than the adapter's; they are taken to "
        "be %s",
        ", ".join(pairs),
    )
    return True


def _task(source: Source, labels: tuple[str, ...]) -> Task:
    """Task of a run without data: that of our record, else made from the labels."""
    if source.note is not None:
        return source.note.task
    return unnamed(len(labels) or 1, "imported")._replace(labels=labels)


def _outputs(source: Source) -> int:
    """Number of outputs of the adapter's head, else of the base model's.

    Raises:
      UserError: a layer of the head is neither in the adapter nor in the base model.
    """
    config, base = source.base.config, source.base
    tensors = dict(source.tensors)
    if base.folder is not None and classifier_labels.missing_head(config, tensors):
        tensors = read_tensors(base.folder) | tensors
    missing = classifier_labels.missing_head(config, tensors)
    shape = () if missing else tensors[f"{head_names(config)['out']}.weight"].shape
    if not shape:
        raise UserError(
            f"neither the adapter nor {base.name} has a trained head "
            f"({missing[0] if missing else 'its last layer is no matrix'}); expected "
            "the adapter of a sequence classifier. Save it with "
            "modules_to_save=['classifier']"
        )
    return shape[0]
