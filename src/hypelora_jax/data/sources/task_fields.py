"""The fields of one task of a file, checked: texts, labels, role, weight and data."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hypelora_jax import files
from hypelora_jax.config import ranges
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.data.formats.cells import shown, text_fault
from hypelora_jax.errors import UserError

MAX_DESCRIPTION = 10_000  # characters
OTHERS = ("paraphrases", "negations")  # texts that are no descriptions of the task
FIELDS = (
    *("name", "description", "descriptions", "data", "labels", "role", "weight"),
    *OTHERS,
    "adapter",
)
ROLES = {"train": False, "held_out": True}  # whether the task is held out
# Fields of config.data that only the run sets, because one model reads all tasks.
COMMON = ("max_length", "pad_to_max", "packing", "condition")


class TaskEntry(NamedTuple):
    """A task of a file.

    `labels` maps the name of each label to the classes of the source that it stands
    for; {} takes the classes themselves. `adapter` is the folder of one that was
    trained on the task, "" without. Messages begin with `where`, the file and the name
    of the task.
    """

    where: str
    name: str
    descriptions: tuple[str, ...]
    data: DataConfig
    labels: dict[str, tuple[str, ...]]
    held_out: bool
    weight: float
    paraphrases: tuple[str, ...]
    negations: tuple[str, ...]
    adapter: str = ""


def entry(
    file: str, place: str, node: Mapping[str, Any], own: Mapping[str, Any]
) -> TaskEntry:
    """Return a task from its fields in a file.

    Args:
      file: the file; paths in `data`, and `adapter`, are relative to its folder.
      place: where the task is in the file, for messages until its name is known.
      node: the fields, as `documents.read` returns them.
      own: fields of the run's config.data, for those that the task does not set.

    Raises:
      UserError: a field is missing, unknown or wrong.
    """
    if unknown := [key for key in node if key not in FIELDS]:
        refuse(
            f"{file}, {place}", f"it has the field {shown(unknown[0])}", _one(FIELDS)
        )
    name = _name(f"{file}, {place}", node.get("name"))
    where = f"{file}, task {name}"
    paraphrases, negations = (_texts(where, n, node.get(n, [])) for n in OTHERS)
    texts = _descriptions(where, node.get("description"), node.get("descriptions"))
    asked = {folded(text) for text in (*texts, *paraphrases)}
    if wrong := [text for text in negations if folded(text) in asked]:
        what = f"{shown(wrong[0])} is among its descriptions and its negations"
        refuse(where, what, "negations that ask the opposite")
    return TaskEntry(
        where,
        name,
        texts,
        _data(where, file, node.get("data"), own),
        _labels(where, node.get("labels")),
        _held_out(where, node.get("role", "train")),
        _weight(where, node.get("weight", "1")),
        paraphrases,
        negations,
        _adapter(where, file, node.get("adapter")),
    )


def folded(text: str) -> str:
    """Return a description in lower case, with single spaces, to compare it."""
    return " ".join(text.casefold().split())


def _name(where: str, name: Any) -> str:
    if name is None:
        refuse(where, "it has no name", "a text in the field name")
    # It may become the name of a folder.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        refuse(
            where,
            f"its name is {shown(name)}",
            "at most 100 letters, digits, '_', '.' and '-', and no '.' or '-' first",
        )
    return name


def _descriptions(where: str, one: Any, many: Any) -> tuple[str, ...]:
    wanted = "a text in the field description, or a list of texts in descriptions"
    if one is not None and many is not None:
        refuse(where, "it has both description and descriptions", wanted)
    if many is None:
        many = [] if one is None else [one]
    if many == []:
        refuse(where, "it has no description", wanted)
    for text in many if isinstance(many, list) else [None]:
        if not isinstance(text, str):
            found = shown(many if one is None else one)
            refuse(where, f"its description is {found}", wanted)
    return _checked(where, many)


def _texts(where: str, field: str, node: Any) -> tuple[str, ...]:
    """Return the texts of a field that only an audit reads."""
    if not isinstance(node, list) or not all(isinstance(one, str) for one in node):
        refuse(where, f"its {field} are {shown(node)}", "a list of texts")
    return _checked(where, node)


def _checked(where: str, texts: list[str]) -> tuple[str, ...]:
    for text in texts:
        if fault := text_fault(text):
            raise UserError(f"{where}: a description is {shown(text)}; {fault}")
        if len(text) > MAX_DESCRIPTION:
            what = f"a description has {len(text):,} characters"
            refuse(where, what, f"at most {MAX_DESCRIPTION:,}")
    return tuple(text.strip() for text in texts)


def _held_out(where: str, role: Any) -> bool:
    if not isinstance(role, str) or role not in ROLES:
        refuse(where, f"its role is {shown(role)}", _one(ROLES))
    return ROLES[role]


def _weight(where: str, text: Any) -> float:
    number = _number(text, float)
    if number is None or not 0 < number < math.inf:
        refuse(where, f"its weight is {shown(text)}", "a finite number above 0")
    return number


def _labels(where: str, node: Any) -> dict[str, tuple[str, ...]]:
    if node is None:
        return {}
    if not isinstance(node, dict) or len(node) < 2:
        refuse(
            where,
            f"its labels are {shown(node)}",
            "a mapping from two or more names to the classes that they stand for, or "
            "no labels",
        )
    out: dict[str, tuple[str, ...]] = {}
    for name, value in node.items():
        classes = value if isinstance(value, list) else [value]
        if text_fault(name) or name != name.strip():
            refuse(where, f"a label has the name {shown(name)}", "a text")
        if not classes or any(map(text_fault, classes)):
            what = f"the label {shown(name)} stands for {shown(value)}"
            refuse(where, what, "a class of the data, or a list of classes")
        out[name] = tuple(one.strip() for one in classes)
    return out


def _data(where: str, file: str, node: Any, own: Mapping[str, Any]) -> DataConfig:
    """Return the config of a task's source; its paths begin at the file's folder."""
    wanted = "data: {source: SOURCE, ...} with fields of config.data"
    if not node:
        refuse(where, "it has no data", wanted)
    if not isinstance(node, dict) or not node.get("source"):
        refuse(where, f"its data is {shown(node)}, without a source", wanted)
    hints, paths = ranges.hints(DataConfig), ranges.paths(DataConfig)
    values: dict[str, Any] = {}
    for name, text in node.items():
        if name in COMMON:
            what = f"data.{name} cannot differ between tasks"
            refuse(where, what, f"config.data.{name} in the config of the run only")
        if name not in hints:
            known = [one for one in hints if one not in COMMON]
            refuse(where, f"data has no field {shown(name)}", _one(known))
        value, expected = _typed(text, hints[name])
        if value is None:
            refuse(where, f"data.{name} is {shown(text)}", expected)
        values[name] = value
    try:
        for name in paths.keys() & values.keys():
            values[name] = _path(file, f"data.{name}", values[name])
        return DataConfig(**{**own, **values})
    except UserError as e:
        raise within(where, e) from e


def _adapter(where: str, file: str, text: Any) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        refuse(where, f"its adapter is {shown(text)}", "the folder of a peft adapter")
    try:
        return _path(file, "adapter", text)
    except UserError as e:
        raise within(where, e) from e


def _path(file: str, field: str, text: str) -> str:
    """Return the path of a field; it begins at the folder of the tasks' file."""
    path = files.user_path(text, field)
    if "://" in path:
        return path
    return os.path.join(os.path.dirname(file), Path(path))  # an absolute one stays


def _typed(text: Any, hint: Any) -> tuple[Any, str]:
    """Return (the value of a field of config.data, or None; what is expected).

    DataConfig checks the rest.
    """
    if hint == tuple[str, ...]:
        fits = isinstance(text, list) and all(isinstance(one, str) for one in text)
        return (tuple(text) if fits else None), "a list of names"
    if hint in (int, float):
        return _number(text, hint), "a whole number" if hint is int else "a number"
    return (text if isinstance(text, str) else None), "a text"


def _number(text: Any, kind: type) -> Any:
    try:
        return kind(text) if isinstance(text, str) else None
    except ValueError:
        return None


def within(where: str, error: UserError) -> UserError:
    """Return the error of a task's source with the file and the name of the task."""
    return UserError(f"{where}: {str(error).replace('config.data.', 'data.')}")


def refuse(where: str, what: str, expected: str) -> NoReturn:
    """Raise a UserError that says where, what was found, and what was expected."""
    raise UserError(f"{where}: {what}; expected {expected}")


def _one(names: Any) -> str:
    return f"one of {', '.join(names)}"
