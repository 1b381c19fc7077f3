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
from hypelora_jax.errors import UserError, choose
from hypelora_jax.evaluate import averaging
from hypelora_jax.exchange import classifier_labels, imported_run
from hypelora_jax.exchange.imported_run import Note
from hypelora_jax.interop import base as bases
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train.session import open_session

# Without a config. Only the head trains, so the run does not copy the backbone: it is
# read from the files of the model.
METHOD = "head"


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
        takes them from the record that `hypelora export` wrote, with method `head`.
        Without such a record the run has no data: it predicts and exports, but cannot
        be evaluated or trained.

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
    """Return the settings of the run.

    They come from the config, else from the record of an export, else they are defaults
    without data. An export is one model, so only some sections of its run's config
    still apply.
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
    # method `head` reads no conditions
    own = dataclasses.replace(own, data=dataclasses.replace(own.data, condition=""))
    # a recorded revision is that of the base model, and `path` is another model
    return Settings(
        method=METHOD,
        model=dataclasses.replace(own.model, path=path, revision="main"),
        loss=own.loss,
        **{name: getattr(own, name) for name in imported_run.KEPT},
    )


def _check_start(settings: Settings) -> None:
    """Check that the run starts as the classifier itself, and as a single model.

    Raises:
      UserError: the config asks for several models, or for an adapter that is not zero
        at step 0.
    """
    _check_single(settings)
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


def _check_single(settings: Settings) -> None:
    """Check that the settings ask for one model, which predicts by itself."""
    if settings.num_seeds > 1:
        raise UserError(
            f"config.num_seeds={settings.num_seeds} asks for several models, but an "
            "import makes a run of one; leave it out"
        )
    kind = settings.uncertainty.kind
    if kind == UncertaintyConfig().kind:
        return
    later = choose(averaging.KINDS, kind, "uncertainty.kind").derived
    way_out = f", and run hypelora uncertainty --kind={kind} on the new run"
    raise UserError(
        f"config.uncertainty.kind={kind} averages over several models, but an import "
        f"makes a run of one; leave it out{way_out if later else ''}"
    )


def _check_head(settings: Settings, task: Task) -> None:
    """Check that the run has the head that the classifier brings.

    Raises:
      UserError: config.head.kind is another one.
    """
    own = families.head_kind(HeadConfig().kind, task)
    if families.head_kind(settings.head.kind, task) != own:
        raise UserError(
            f"config.head.kind is {settings.head.kind!r}, but the model comes with a "
            f"head of kind {own!r}; leave head.kind out"
        )


def _task(labels: tuple[str, ...], note: Note | None) -> Task:
    """Task of a run without data: that of our export, else one made from the labels."""
    if note is not None and note.task.labels == labels:
        return note.task
    return unnamed(len(labels) or 1, "imported")._replace(labels=labels)
