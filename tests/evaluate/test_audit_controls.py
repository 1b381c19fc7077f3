"""Which rows and which controls an audit has."""

import json
import logging

import numpy as np
import pytest
import task_sets

from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate.audit import auditing, controls


def corpus(folder, **labelled):
    """Load two held-out tasks and one that trains; a split may have no labels."""
    tasks = []
    for name, role in (("a", "train"), ("b", "held_out"), ("c", "held_out")):
        data = {"source": "files"}
        for split in ("train", "validation", "test"):
            has = labelled.get(f"{name}_{split}", True)
            rows = [{"text": f"{name} {split} {i}", "label": i % 2} for i in range(20)]
            rows = rows if has else [{"text": row["text"]} for row in rows]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}_{split}.jsonl").write_text(lines)
            data[split] = f"{name}_{split}.jsonl"
        tasks.append({"name": name, "description": name, "role": role, "data": data})
    (folder / "set.json").write_text(json.dumps(tasks))
    return task_sets.load(folder / "set.json")


def test_a_split_without_labels_is_not_audited(tmp_path, caplog):
    found = corpus(tmp_path, b_test=False, c_test=False)
    name, table = auditing.audited(found, "")
    assert name == "held_out_validation" and len(table.label) == 40
    with pytest.raises(UserError, match="no example of held_out_test has a label"):
        auditing.audited(found, "held_out_test")
    assert "not audited" not in caplog.text


def test_tasks_without_labels_are_named(tmp_path, caplog):
    name, table = auditing.audited(corpus(tmp_path, b_test=False), "")
    assert name == "held_out_test" and np.unique(table.task).tolist() == [2]
    assert "not audited, without labels in held_out_test: b" in caplog.text


def test_a_control_that_lacks_a_task_is_left_out_and_said_so(tmp_path, caplog):
    tasks = corpus(tmp_path).tasks._replace(
        paraphrases=(("x",), ("y",), ()), negations=(("n",), ("m",), ("o",))
    )
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    arrays = TaskArrays({"condition": vectors}, {})

    def embed(texts):
        return [np.ones((len(some), 4), np.float32) for some in texts]

    with caplog.at_level(logging.WARNING):
        found = controls.draws(arrays, tasks, [1, 2], embed, 0)
    assert "negated" in found and "paraphrased" not in found
    assert "no row paraphrased: there are no paraphrases of c" in caplog.text
    assert "negated" not in caplog.text
