"""Imports a fine-tuned Hugging Face classifier as a run at step 0."""

import dataclasses

from absl import logging
from etils import epath

from hypelora_jax import families, files
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import (
    DataConfig,
    HeadConfig,
    HyperConfig,
    Settings,
    UncertaintyConfig,
)
from hypelora_jax.data.tasks import Task, unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.exchange import classifier_labels, imported_run
from hypelora_jax.exchange.imported_run import Note
from hypelora_jax.interop import base as bases
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train.session import open_session

METHOD = "head"  # without a config: the backbone stays the model's and is not copied


def import_classifier(
    model: str, workdir: str, config: Settings | None = None
) -> epath.Path:
    """Make a run folder from a classifier, to predict with, calibrate or adapt further.

    The run computes the classifier's logits, whatever its method: what a method adds is
    zero at step 0.

    Args:
      model: folder or hub name of a sequence classifier with config.json, safetensors
        and tokenizer.
      workdir: folder that does not exist or is empty.
      config: gives method, data, optimizer and loss; the model comes from `model`. None
        takes the data of our export, if it is one. Without data the run predicts and
        exports but cannot be evaluated or trained.

    Raises:
      UserError: the model is not a sequence classifier, its labels are not those of the
        data, or the config would not start from the classifier.
    """
    run = Run.create(workdir)
    files.check_empty(run.path, "--workdir", workdir)
    base = bases.resolve(model, config.model.revision if config else "main")
    labels = classifier_labels.read(base)
    note = imported_run.note_of(base.folder) if base.folder else None
    settings = records.located(_settings(base, note, config))
    _check_start(settings)
    corpus = imported_run.corpus_of(settings, asked=config is not None)
    settings, corpus = imported_run.with_classes(settings, corpus, labels)
    task = corpus.task if corpus is not None else _task(labels, note)
    _check_head(settings, task)
    session = open_session(settings, task, base.revision or None)
    imported_run.begin(session, corpus, run, note)
    logging.info(
        "imported %s into %s: step 0 of a run of method %s",
        *(model, workdir, settings.method),
    )
    return run.path


def _settings(base: bases.Base, note: Note | None, config: Settings | None) -> Settings:
    """Settings of the run: those of the config, else of our export, else without data.

    An export is one model, so only some sections of its run's config still apply.
    """
    path = imported_run.model_path(base)
    if config is not None:
        model = dataclasses.replace(config.model, path=path)
        return dataclasses.replace(config, model=model)
    if note is None:
        longest = families.of(base.config).max_tokens(base.config)
        own = Settings(data=DataConfig(source="files", max_length=longest))
    else:
        own = note.settings
    own = dataclasses.replace(own, data=dataclasses.replace(own.data, condition=""))
    return Settings(
        method=METHOD,
        model=dataclasses.replace(own.model, path=path, revision="main"),
        loss=own.loss,
        **{name: getattr(own, name) for name in imported_run.KEPT},
    )


def _check_start(settings: Settings) -> None:
    """Check that the run starts from the classifier, and from one of it.

    Raises:
      UserError: the config asks for several models, or for an adapter that is not zero
        at step 0.
    """
    kind = settings.uncertainty.kind
    if settings.num_seeds > 1 or kind != UncertaintyConfig().kind:
        field = f"uncertainty.kind={kind}"
        field = f"num_seeds={settings.num_seeds}" if settings.num_seeds > 1 else field
        raise UserError(
            f"config.{field} is more than one model; expected one to import: leave it "
            "out, and use hypelora uncertainty on the run"
        )
    if model_lib.method(settings.method).network is None:
        return
    blend, zero = settings.blend, HyperConfig().init
    moved = blend.b == "add" and blend.b_init == "lora" and blend.alpha > 0
    if moved or settings.hyper.init != zero:
        field = "blend.b_init=lora" if moved else f"hyper.init={settings.hyper.init}"
        raise UserError(
            f"config.{field} starts with an adapter that changes the classifier; "
            f"expected hyper.init={zero} and blend.b=replace, so that the run starts "
            "as the classifier"
        )


def _check_head(settings: Settings, task: Task) -> None:
    """Check that the run has the head that the classifier brings.

    Raises:
      UserError: config.head.kind is another one.
    """
    own = families.head_kind(HeadConfig().kind, task)
    if families.head_kind(settings.head.kind, task) != own:
        raise UserError(
            f"config.head.kind is {settings.head.kind}, and the model brings its head; "
            f"expected {own}: leave it out"
        )


def _task(labels: tuple[str, ...], note: Note | None) -> Task:
    """Task of a run without data: that of our export, else one made from the labels."""
    if note is not None and note.task.labels == labels:
        return note.task
    return unnamed(len(labels) or 1, "imported")._replace(labels=labels)
