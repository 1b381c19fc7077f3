"""Reads the file of a set of tasks, and checks that its tasks fit together."""

import dataclasses
import os
from collections import defaultdict
from typing import Any

from absl import logging

from hypelora_jax.config import ranges
from hypelora_jax.config.sections import DataConfig
from hypelora_jax.data import labels
from hypelora_jax.data.formats import documents
from hypelora_jax.data.formats.cells import listed, shown
from hypelora_jax.data.sources import task_fields
from hypelora_jax.data.sources.task_fields import TaskEntry, folded, refuse
from hypelora_jax.errors import UserError

MAX_TASKS = 10_000
_ALL = ("max_length", "pad_to_max", "packing")  # the same for all tasks
# A task that does not set these has the values of the run.
_DEFAULTS = (
    "calibration_fraction",
    "on_bad_row",
    "num_classes",
    "num_examples",
    "max_examples",
)
_WANTED = "a list of tasks, or a mapping with the keys tasks and defaults"


def read(file: str, config: DataConfig) -> list[TaskEntry]:
    """Return the tasks of a YAML or JSON file (docs/tasks.md), in its order.

    Args:
      file: the file.
      config: config.data of the run, which says how long texts are, for example.

    Raises:
      UserError: the file or a task of it cannot be used; the message names both.
    """
    own = _of_run(config)
    nodes, defaults = _parts(file, documents.read(file))
    out = list[TaskEntry]()
    for i, node in enumerate(nodes, 1):
        place = f"task {i} of {len(nodes)}"
        if not isinstance(node, dict):
            refuse(f"{file}, {place}", f"it is {shown(node)}", "a mapping of fields")
        out.append(task_fields.entry(file, place, _merged(defaults, node), own))
    _check_names(out)
    if all(entry.held_out for entry in out):
        refuse(file, f"its {len(out)} tasks all have the role held_out", "one to train")
    _check_held_out(out)
    _warn_of_repeated(file, out)
    return out


def _of_run(config: DataConfig) -> dict[str, Any]:
    """Return the fields of the run that its tasks share.

    Raises:
      UserError: a field is set that says what a single source reads.
    """
    blank, kept = dataclasses.asdict(DataConfig()), (*_ALL, *_DEFAULTS)
    for name, default in blank.items():
        got = getattr(config, name)
        if name not in (*kept, "source", "condition") and got != default:
            raise UserError(
                f"config.data.{name} is {got!r}, but with data.source=tasks each task "
                f"of config.tasks.file says what it reads; expected no data.{name}"
            )
    return {name: getattr(config, name) for name in kept}


def _parts(file: str, document: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the tasks of a document, and the fields that they share."""
    tasks, defaults = document, None
    if isinstance(document, dict):
        unknown = [key for key in document if key not in ("tasks", "defaults")]
        if unknown or "tasks" not in document:
            what = f"the key {shown(unknown[0])}" if unknown else "no key tasks"
            refuse(file, f"it has {what}", _WANTED)
        tasks, defaults = document["tasks"], document.get("defaults")
    if not tasks and (tasks is None or isinstance(tasks, list)):
        refuse(file, "it has no tasks", _WANTED)
    if not isinstance(tasks, list):
        refuse(file, f"its tasks are {shown(tasks)}", _WANTED)
    if len(tasks) > MAX_TASKS:
        refuse(file, f"it has {len(tasks):,} tasks", f"at most {MAX_TASKS:,}")
    if defaults is None:
        return tasks, {}
    if not isinstance(defaults, dict):
        refuse(file, f"its defaults are {shown(defaults)}", "a mapping of fields")
    if "name" in defaults:
        refuse(file, "its defaults have a name", "a name in each task")
    return tasks, defaults


def _merged(defaults: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a task, with those of the defaults that it does not have."""
    told = ("description", "descriptions")  # one of them replaces the other
    if any(key in node for key in told):
        defaults = {key: x for key, x in defaults.items() if key not in told}
    out, general, own = defaults | node, defaults.get("data"), node.get("data")
    if isinstance(general, dict) and isinstance(own, dict):
        out["data"] = general | own
    return out


def _check_names(entries: list[TaskEntry]) -> None:
    seen: dict[str, int] = {}
    for i, entry in enumerate(entries):
        first = seen.setdefault(entry.name, i)
        if first == i:
            continue
        roles = {entries[first].held_out, entry.held_out}
        both = "; one of them trains and one is held out" if len(roles) > 1 else ""
        what = f"tasks {first + 1} and {i + 1} of the file have this name{both}"
        refuse(entry.where, what, "another name for each task")


def _check_held_out(entries: list[TaskEntry]) -> None:
    """Refuse a held-out task that trains under another name."""
    users, reads = dict[Any, str](), [_reads(entry) for entry in entries]
    for entry, own in zip(entries, reads, strict=True):
        for text in () if entry.held_out else entry.descriptions:
            users.setdefault((own, folded(text)), entry.name)
    for entry, own in zip(entries, reads, strict=True):
        for text in entry.descriptions if entry.held_out else ():
            if same := users.get((own, folded(text))):
                refuse(
                    entry.where,
                    f"it is held out, but task {same} trains with the same data, "
                    f"labels and description {shown(text)}",
                    "a task that differs, or one role for both",
                )


def _reads(entry: TaskEntry) -> Any:
    """Return data and labels of a task, equal for two tasks that read the same.

    Labels that are the names of the classes count as none, and paths are absolute.
    """
    pairs = {(name, frozenset(map(labels.key, x))) for name, x in entry.labels.items()}
    same = all(x == {labels.key(name)} for name, x in pairs)
    files = {name: getattr(entry.data, name) for name in ranges.paths(DataConfig)}
    whole = {n: os.path.abspath(x) for n, x in files.items() if x and "://" not in x}
    data = dataclasses.replace(entry.data, **whole)
    return data, frozenset[Any]() if same else frozenset(pairs)


def _warn_of_repeated(file: str, entries: list[TaskEntry]) -> None:
    """Log one warning if tasks have descriptions in common."""
    users = defaultdict[str, list[str]](list)
    for entry in entries:
        for text in dict.fromkeys(entry.descriptions):
            users[text].append(entry.name)
    repeated = {text: names for text, names in users.items() if len(names) > 1}
    if repeated:
        text, names = next(iter(repeated.items()))
        logging.warning(
            "%s: descriptions that several tasks have: %d, such as %s of %s",
            file,
            len(repeated),
            shown(text),
            listed(names),
        )
