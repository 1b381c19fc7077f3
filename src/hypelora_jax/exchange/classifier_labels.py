"""The outputs of a Hugging Face classifier: its labels, and the data's names for them.

config.json says what the outputs mean (`id2label`, `problem_type`), and the head's last
layer says how many there are. Both must agree.
"""

from collections.abc import Iterable, Sequence

from absl import logging

from hypelora_jax import families
from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.base import Base
from hypelora_jax.interop.tensor_paths import head_names
from hypelora_jax.interop.tensors import MODEL_CONFIG, read_fields, read_tensors

_MULTI_LABEL = "multi_label_classification"
_DEFAULT_OUTPUTS = 2  # of transformers, if config.json says nothing


def read(base: Base) -> tuple[str, ...]:
    """Read the labels of a classifier in the order of its logits; () if it has none.

    A model with one output, a regression, has no labels.

    Raises:
      UserError: the model is not a sequence classifier of its family, or config.json
        says something else than the head about its outputs.
    """
    if base.folder is None:
        raise UserError(
            f"{base.name} has random weights; expected a folder or the hub name of a "
            "fine-tuned classifier"
        )
    path, wanted = base.folder / MODEL_CONFIG, _architecture(base.config)
    tensors = read_tensors(base.folder)
    if missing := missing_head(base.config, tensors):
        raise UserError(
            f"{base.name} has no classification head ({missing[0]} is missing); "
            f"expected the files of a {wanted}; train one with hypelora train"
        )
    fields = read_fields(path)
    if wanted not in (fields.texts("architectures", ()) or (wanted,)):
        fields.fault("architectures", f"{wanted}, as other outputs mean something else")
    shape = tensors[f"{head_names(base.config)['out']}.weight"].shape
    return _labels(fields, _names(fields), shape[0] if shape else 0)


def of_adapter(base: Base, outputs: int) -> tuple[str, ...]:
    """Read the labels of an adapter's head from its base, as transformers takes them.

    They are the base's names if it has one for each output, else LABEL_0, ...; () for
    one output.

    Raises:
      UserError: config.json of the base says that the outputs are no logits of
        exclusive classes.
    """
    if base.folder is None:
        return _unnamed(outputs) if outputs > 1 else ()
    fields = read_fields(base.folder / MODEL_CONFIG)
    names = _names(fields)
    several = fields.text("problem_type", "") == _MULTI_LABEL
    if several or _count(fields, names) == outputs:
        return _labels(fields, names, outputs)
    return _unnamed(outputs) if outputs > 1 else ()


def _architecture(config: EncoderConfig) -> str:
    """The family's sequence classifier, by its name in transformers."""
    return families.of(config).fields(config, True)["architectures"][0]


def missing_head(config: EncoderConfig, tensors: Iterable[str]) -> list[str]:
    """Tensors of the head that a file lacks; it may leave out the family's prefix."""
    prefix = families.of(config).names.prefix
    has = {name.removeprefix(prefix) for name in tensors}
    layers = [*head_names(config).values()][::-1]  # a bare encoder may have a pooler
    wanted = [f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias")]
    return [name for name in wanted if name.removeprefix(prefix) not in has]


def _count(fields: JsonFields, names: Sequence[str]) -> int:
    """Number of labels that config.json says."""
    return len(names) or fields.integer("num_labels", 1, _DEFAULT_OUTPUTS)


def _labels(fields: JsonFields, names: Sequence[str], outputs: int) -> tuple[str, ...]:
    count = _count(fields, names)
    said = fields.integer("num_labels", 1, count)
    problem = "regression" if outputs == 1 else "single_label_classification"
    if (got := fields.text("problem_type", problem)) != problem:
        raise UserError(
            f"{fields.where} has problem_type={got!r} and {outputs} output"
            f"{'s' * (outputs > 1)}; expected {problem}: a run answers with one class, "
            "or with one number"
        )
    if said != count or count != outputs:
        source = "id2label" if names else "num_labels"
        others = f", num_labels={said!r}" if names and said != count else ""
        raise UserError(
            f"{fields.where} has {count!r} labels ({source}{others}) and the head "
            f"{outputs} outputs; expected one label for each output: use the "
            "config.json that the model was saved with"
        )
    if outputs == 1:
        return ()
    return tuple(names) or _unnamed(outputs)


def _names(fields: JsonFields) -> list[str]:
    """Labels by their numbers in id2label; [] if there is no id2label."""
    if fields.values.get("id2label") is None:
        return []
    where, named = fields.where, fields.object("id2label").values
    expected = (
        'expected {"0": NAME, "1": NAME, ...} with a different name for each output'
    )
    if not named:
        raise UserError(f"{where} has id2label={{}}; {expected}")
    if missing := [i for i in range(len(named)) if str(i) not in named]:
        raise UserError(
            f"{where} has id2label with the numbers {', '.join(named)}, without "
            f"{missing[0]}; {expected}"
        )
    names = [named[str(i)] for i in range(len(named))]
    for name in names:
        if not isinstance(name, str | int) or not str(name).strip():
            raise UserError(f"{where} has the label {name!r} in id2label; {expected}")
    names = [str(name) for name in names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{where} has the label {twice[0]!r} twice in id2label; {expected}"
        )
    return names


def _unnamed(outputs: int) -> tuple[str, ...]:
    """Labels as transformers gives them to a model without names."""
    return tuple(f"LABEL_{i}" for i in range(outputs))


def check_kind(labels: Sequence[str], found: Sequence[str]) -> None:
    """Check that data have classes if a classifier has labels, and else numbers.

    Raises:
      UserError: they have the other kind of labels.
    """
    if bool(found) == bool(labels):
        return
    has, wants = ("classes", "a number") if found else ("numbers", "a class")
    when = "the numbers in your files stand for classes"
    when = "the labels of your files are numbers" if found else when
    task = unnamed(len(labels) or 1).kind
    raise UserError(
        f"the labels of the data are {has}, and the model predicts {wants}; expected "
        f"data for a {task}. If {when}, set config.data.task={task}; otherwise choose "
        "another config"
    )


def of_data(labels: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """Name a classifier's labels, in the order of its logits, as the data names them.

    The data may lack some. It has the same names, or names that differ in case, or
    numbers of labels. If the classifier has no names (LABEL_0, ...), the data's classes
    are taken in their order, with a warning.

    Args:
      labels: the classifier's labels.
      found: the classes of the data.

    Raises:
      UserError: a class of the data is not a label.
    """
    labels, numbers = tuple(labels), tuple(map(str, range(len(labels))))
    if set(found) <= set(labels):
        return labels
    if set(found) <= set(numbers):
        pairs = (f"{i} = {name}" for i, name in enumerate(labels))
        logging.info("labels of the data by number: %s", ", ".join(pairs))
        return numbers
    folded = {name.casefold(): name for name in found}
    lower = [name.casefold() for name in labels]
    unique = len(folded) == len(found) and len(set(lower)) == len(lower)
    if unique and folded.keys() <= set(lower):
        return tuple(folded.get(name.casefold(), name) for name in labels)
    if labels == _unnamed(len(labels)) and len(found) == len(labels):
        pairs = (f"{a} = {b}" for a, b in zip(labels, found, strict=True))
        logging.warning(
            "the model has no names for its labels; they are taken to be %s: if that "
            "is wrong, set id2label in its config.json",
            ", ".join(pairs),
        )
        return tuple(found)
    raise UserError(
        f"the classes of the data are {', '.join(found)}, the labels of the model "
        f"{', '.join(labels)}; expected the same names, or their numbers: rename the "
        "labels of the data"
    )
