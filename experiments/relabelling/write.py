"""Writes a set of tasks: sentences.jsonl, tasks.yaml, about.json, the rows of tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from etils import epath

from hypelora_jax import files

from .attributes import Sentence
from .tasks import TaskRows

DEFAULTS = {  # what all tasks of tasks.yaml have in common
    "data": {"source": "files", "text": "text", "label": "label"},
    "labels": {"yes": "yes", "no": "no"},
}


def write(
    folder: epath.Path,
    sentences: Sequence[Sentence],
    splits: Mapping[int, str],
    tasks: Sequence[TaskRows],
    about: Mapping[str, Any],
) -> None:
    """Write all files of a set of tasks into a folder.

    Args:
      splits: the split of each sentence, by id.
      about: what about.json says of the whole set.
    """
    rows = [s._asdict() | {"split": splits[s.id]} for s in sentences]
    files.write_whole(folder / "sentences.jsonl", _lines(rows))
    for task in tasks:
        for split, own in task.rows.items():
            files.write_whole(folder / _file(task.name, split), _lines(own))
    named = {task.name: task for task in tasks}
    entries = [_entry(task, named.get(task.about["negation"])) for task in tasks]
    listed = {"defaults": DEFAULTS, "tasks": entries}
    text = yaml.safe_dump(listed, sort_keys=False, width=1000, allow_unicode=True)
    files.write_whole(folder / "tasks.yaml", text)
    every = {task.name: _about(task) for task in tasks}
    files.write_json(folder / "about.json", {**about, "tasks": every})


def _file(name: str, split: str) -> str:
    return f"data/{name}/{split}.jsonl"


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(files.to_json(row, ensure_ascii=False) + "\n" for row in rows)


def _entry(task: TaskRows, negation: TaskRows | None) -> dict[str, Any]:
    """Return a task's entry of tasks.yaml; its descriptions are those of training."""
    opposite = [] if negation is None else negation.wordings.seen
    return {
        "name": task.name,
        "descriptions": [one.text for one in task.wordings.seen],
        "paraphrases": [one.text for one in task.wordings.unseen_verb],
        "negations": [one.text for one in opposite],
        "data": {split: _file(task.name, split) for split in task.rows},
        "role": "train" if task.about["group"] == "train" else "held_out",
    }


def _about(task: TaskRows) -> dict[str, Any]:
    return {
        **task.about,
        "rows": {split: len(rows) for split, rows in task.rows.items()},
        "wordings": {
            name: [one._asdict() for one in some]
            for name, some in task.wordings._asdict().items()
        },
    }


def summary(tasks: Sequence[TaskRows], dropped: Sequence[str]) -> str:
    """Return the numbers of tasks and wordings as text of several lines."""
    names = {task.about["attribute"] for task in tasks}
    groups = Counter(task.about["group"] for task in tasks)
    seen = [len(task.wordings.seen) for task in tasks]
    fresh = [sum(map(len, task.wordings[1:])) for task in tasks]
    lines = [
        f"{len(tasks)} tasks of {len(names)} attributes",
        *(f"  {name}: {n}" for name, n in groups.items()),
        f"wordings a task: {min(seen)} to {max(seen)} seen, "
        f"{min(fresh)} to {max(fresh)} unseen",
    ]
    for split in tasks[0].rows:
        sizes = [len(task.rows[split]) for task in tasks]
        lines.append(f"rows of {split} a task: {min(sizes)} to {max(sizes)}")
    if dropped:
        lines.append(f"too few sentences, left out: {', '.join(dropped)}")
    return "\n".join(lines)
