"""Sets of tasks for tests: the example of the documentation, and changed files."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import fuzzing
import yaml

from hypelora_jax import files
from hypelora_jax.config.settings import DataConfig, TasksConfig
from hypelora_jax.data import sources
from hypelora_jax.data.tables import Corpus

DOCS = Path(__file__).parents[1] / "docs" / "tasks.md"
SYNTHETIC = {"source": "synthetic", "num_examples": 64}
GOOD: dict[str, Any] = {
    "defaults": {"data": SYNTHETIC},
    "tasks": [
        {"name": "a", "description": "A?", "labels": {"n": "class_b", "y": "class_d"}},
        {"name": "b", "descriptions": ["B?", "C?"], "weight": 2, "role": "held_out"},
        {"name": "c", "description": "D?", "data": {"num_classes": 2}},
    ],
}


def write_example(folder: Path) -> Path:
    """Write the file of docs/tasks.md and the table that it reads."""
    rows = [
        {"text": f"a film {i}{'?' * (i // 2 % 2)}", "liked": i % 2, "asks": i // 2 % 2}
        for i in range(96)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "reviews.jsonl").write_text(lines)
    text = re.search(r"\n    # tasks\.yaml\n((?:    .*\n|\n)+)", DOCS.read_text())[1]
    (folder / "tasks.yaml").write_text(textwrap.dedent(text))
    return folder / "tasks.yaml"


def load(file: Path | str, seed: int = 0, **fields: Any) -> Corpus:
    config = DataConfig(source="tasks", **fields)
    return sources.load(config, seed, None, TasksConfig(file=str(file)))


def read_changed(change: fuzzing.Change, folder: Path) -> None:
    """Load a changed set, in YAML or JSON."""
    tasks = fuzzing.edited(GOOD, change.edits)
    in_json = change.pick % 2
    try:
        text = json.dumps(tasks) if in_json else yaml.safe_dump(tasks)
    except (yaml.YAMLError, ValueError, RecursionError):  # such as a huge integer
        text = "[]"
    path = folder / ("set.json" if in_json else "set.yaml")
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(fuzzing.stepped(data, change.steps))
    with files.offline():  # a changed source may be one that downloads
        corpus = load(path)
    assert corpus.tasks is not None and len(corpus.splits["train"].ids)
