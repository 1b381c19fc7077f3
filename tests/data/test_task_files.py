"""Sets of tasks from files: what is read, and the one line of each mistake."""

import json
import re
import time
from pathlib import Path

import fuzzing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import task_sets
import yaml
from task_sets import SYNTHETIC, load

from hypelora_jax import cli, files
from hypelora_jax.config.settings import ConditionConfig, DataConfig, TasksConfig
from hypelora_jax.data import formats, sources
from hypelora_jax.data.formats import documents
from hypelora_jax.data.sources import movie_reviews, unions
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.errors import UserError

# Sentences with several columns of labels, as a relabelling benchmark has them.
ROWS = [
    {
        "text": f"text {i}",
        "positive": i % 2,
        "stars": 1 + i % 3,
        "kind": "abc"[i % 3],
        "question": i // 2 % 2,
    }
    for i in range(48)
]
PAIRS = [{"text": f"t {i}", "text_b": f"u {i}", "label": "ab"[i % 2]} for i in range(8)]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def task(name, **fields):
    about = {"name": name, "description": f"About {name}?", "data": SYNTHETIC}
    return about | fields


def saved(folder, tasks, name="set.yaml"):
    path = folder / name
    if not isinstance(tasks, str):
        in_json = name.endswith("json")
        tasks = json.dumps(tasks) if in_json else yaml.safe_dump(tasks, sort_keys=False)
    path.write_text(tasks)
    return str(path)


def refused(file, **fields):
    with pytest.raises(UserError) as caught:
        load(file, **fields)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


# What is read


def test_a_small_set_by_hand(tmp_path):
    for name, count in (("train", 4), ("cal", 2), ("val", 2)):
        write(tmp_path / f"{name}.jsonl", ROWS[:count])
    data = {"source": "files", "train": "train.jsonl", "calibration": "cal.jsonl"}
    data["validation"] = "val.jsonl"
    positive, negative = {"no": "0", "yes": "1"}, {"yes": "0", "no": ["1"]}
    own = {"data": {"label": "positive"}}
    tasks = [
        task("likes", labels=positive, **own) | {"description": " Is it liked? \n"},
        task("old", labels=positive, role="held_out", **own),
        task("hates", labels=negative, weight=2.5, **own),
    ]
    tasks[0]["paraphrases"] = ["Is it approved of?"]
    tasks[0]["negations"] = ["Is it hated?", "No?"]
    del tasks[2]["description"]
    tasks[2]["descriptions"] = ["Is it hated?", "Не нравится?"]
    corpus = load(saved(tmp_path, {"defaults": {"data": data}, "tasks": tasks}))
    assert corpus.tasks == TaskSet(
        names=("likes", "old", "hates"),
        descriptions=(
            ("Is it liked?",),
            ("About old?",),
            ("Is it hated?", "Не нравится?"),
        ),
        labels=(("no", "yes"),) * 3,
        held_out=(False, True, False),
        weights=(1.0, 1.0, 2.5),
        paraphrases=(("Is it approved of?",), (), ()),
        negations=(("Is it hated?", "No?"), (), ()),
    )
    assert corpus.task == ("tasks", "classification", ("no", "yes"), *corpus.task[3:])
    assert corpus.task.metrics == ("accuracy",) and not corpus.task.pair
    names = {"train", "calibration", "validation", "held_out_validation"}
    assert set(corpus.splits) == names
    train = corpus.splits["train"]
    assert train.text == [f"text {i}" for i in (0, 1, 2, 3)] * 2
    far = 2 * 2**32
    assert train.ids.tolist() == [0, 1, 2, 3, far, far + 1, far + 2, far + 3]
    assert train.task.tolist() == [0] * 4 + [2] * 4
    assert train.label.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    assert train.soft is None and train.text_b is None and train.condition is None
    kinds = (train.ids.dtype, train.task.dtype, train.label.dtype)
    assert kinds == (np.int64, np.int32, np.int32)
    held = corpus.splits["held_out_validation"]
    assert (held.task.tolist(), held.label.tolist()) == ([1, 1], [0, 1])
    assert held.ids.tolist() == [2**32, 2**32 + 1]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_rows_of_a_task_are_those_of_its_source_alone(tmp_path, suffix):
    train = write(tmp_path / f"rows{suffix}", ROWS)
    data = {"source": "files", "train": train, "max_examples": 20}
    labels = {"no": "0", "yes": "1"}
    tasks = [
        task("positive", data=data | {"label": "positive"}, labels=labels),
        task("question", data=data | {"label": "question"}, labels=labels),
    ]
    corpus = load(saved(tmp_path, tasks, "set.json"), seed=3)
    for k, label in enumerate(("positive", "question")):
        path = str(tmp_path / train)
        config = DataConfig(source="files", train=path, label=label, max_examples=20)
        alone = sources.load(config, 3).splits
        for name, table in corpus.splits.items():
            rows = np.flatnonzero(table.task == k)
            assert [table.text[i] for i in rows] == alone[name].text, (label, name)
            np.testing.assert_array_equal(table.label[rows], alone[name].label)
            np.testing.assert_array_equal(table.ids[rows] - (k << 32), alone[name].ids)
    assert len(corpus.splits["train"].ids) == 40, "each task is cut, and only once"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_of_many_tasks_is_parsed_once(tmp_path, monkeypatch, suffix):
    rows = [
        {"text": f"{i}"} | {f"l{k}": (i + k) % 2 for k in range(9)} for i in range(40)
    ]
    train = write(tmp_path / f"rows{suffix}", rows)
    taken, read = [], formats.read

    def counted(path, how):
        sheet = read(path, how)

        def rows(columns, others):
            taken.append(tuple(columns))
            yield from sheet.rows(columns, others)

        return sheet._replace(rows=rows)

    monkeypatch.setattr(formats, "read", counted)
    data = {"source": "files", "train": train}
    tasks = [task(f"t{k}", data=data | {"label": f"l{k}"}) for k in range(9)]
    corpus = load(saved(tmp_path, tasks))
    columns = [(c,) for c in rows[0]] if suffix == ".parquet" else [()]
    assert sorted(taken) == sorted(columns), "no row or column is read twice"
    first = {}
    for table in corpus.splits.values():
        for text in table.text:
            assert first.setdefault(text, text) is text, "texts are shared, not copied"


def test_parquet_with_a_bad_cell_reads_the_same_in_memory(tmp_path):
    ends = pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes())
    texts = pa.Array.from_buffers(pa.string(), 3, [None, ends, pa.py_buffer(b"a\xffc")])
    table = pa.table({"text": texts, "label": [0, 1, 1]})
    path = str(tmp_path / "bad.parquet")
    pq.write_table(table, path)
    how = formats.format_of(path)
    for columns in (["text", "label"], ["label"]):
        direct = [
            x._replace(read=0) for x in formats.read(path, how).rows(columns, False)
        ]
        sheet = formats.read_once({path})(path, how)
        kept = [x._replace(read=0) for x in sheet.rows(columns, False)]
        assert kept == direct and len(direct) == 3


def test_labels_stand_for_one_class_or_several(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    data = {"source": "files", "train": "rows.jsonl"}
    grouped, other = {"low": [1, 2], "high": [3]}, {"high": "a", "low": ["c", "b"]}
    tasks = [
        task("stars", data=data | {"label": "stars"}, labels=grouped),
        task("kind", data=data | {"label": "kind"}, labels=other),
    ]
    corpus = load(saved(tmp_path, tasks, "set.json"))
    assert corpus.task.labels == ("low", "high")
    table = corpus.splits["train"]
    place = np.array([int(text.split()[1]) for text in table.text])
    wanted = np.where(table.task == 0, place % 3 == 2, place % 3 == 0)
    np.testing.assert_array_equal(table.label, wanted)


def test_soft_labels_are_summed_over_the_classes_of_a_label(tmp_path):
    three = SYNTHETIC | {"num_classes": 3}
    labels = {"x": "class_d", "y": ["class_f", "class_b"]}
    tasks = [
        task("three", data=three, labels=labels),
        task("two", labels={"y": "class_d", "x": "class_b"}),
    ]
    corpus = load(saved(tmp_path, tasks))
    own = sources.load(
        DataConfig(source="synthetic", num_examples=64, num_classes=3), 0
    )
    alone = own.splits["test"].soft  # of the classes b, d and f
    table = corpus.splits["test"]
    got = table.soft[table.task == 0]
    np.testing.assert_allclose(got[:, 0], alone[:, 1], rtol=1e-6)
    np.testing.assert_allclose(got[:, 1], alone[:, 0] + alone[:, 2], rtol=1e-6)
    np.testing.assert_allclose(table.soft.sum(1), 1, rtol=1e-6)
    two = sources.load(DataConfig(source="synthetic", num_examples=64), 0).splits[
        "test"
    ]
    np.testing.assert_array_equal(table.soft[table.task == 1], two.soft)
    np.testing.assert_array_equal(table.label[table.task == 1], two.label)


def test_soft_labels_need_those_of_all_tasks(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    data = {"source": "files", "train": "rows.jsonl", "label": "positive"}
    labels = {"class_b": "0", "class_d": "1"}
    corpus = load(saved(tmp_path, [task("a"), task("b", data=data, labels=labels)]))
    assert all(table.soft is None for table in corpus.splits.values())


def test_tasks_of_different_labels_share_numbered_classes(tmp_path, caplog):
    caplog.set_level("INFO")
    three = task("three", data=SYNTHETIC | {"num_classes": 3})
    two = task("two", labels={"yes": "class_d", "no": "class_b"})
    corpus = load(saved(tmp_path, [two, three]))
    assert corpus.task.labels == ("class_0", "class_1", "class_2")
    assert corpus.tasks.labels == (("yes", "no"), ("class_b", "class_d", "class_f"))
    table = corpus.splits["test"]
    alone = sources.load(DataConfig(source="synthetic", num_examples=64), 0)
    first = table.task == 0
    np.testing.assert_array_equal(table.label[first], 1 - alone.splits["test"].label)
    assert table.soft.shape == (200, 3) and not table.soft[first, 2].any()
    assert (
        "different labels, so the classes are class_0, class_1, class_2" in caplog.text
    )


def test_examples_without_a_label_keep_none(tmp_path):
    train = write(tmp_path / "rows.jsonl", ROWS)
    test = write(tmp_path / "test.jsonl", [{"text": "a"}, {"text": "b", "positive": 1}])
    data = {"source": "files", "train": train, "test": test, "label": "positive"}
    labels = {"yes": "1", "no": "0"}
    corpus = load(saved(tmp_path, [task("a", data=data, labels=labels)]))
    assert corpus.splits["test"].label.tolist() == [-1, 0]


def test_yes_and_no_stay_words_and_numbers_become_words(tmp_path):
    text = """
    - name: 007
      description: 1.10
      data: {source: synthetic, num_examples: 64}
      labels: {yes: class_d, no: class_b}
    - name: on
      description: "null"
      data: {source: synthetic, num_examples: 64}
      labels: {no: class_d, yes: class_b}
    """
    corpus = load(saved(tmp_path, text))
    assert corpus.tasks.names == ("007", "on")
    assert corpus.tasks.descriptions == (("1.10",), ("null",))
    assert corpus.task.labels == ("yes", "no")
    ones = '[{"name": "a", "description": "x", "data": {"source": "synthetic"}, '
    ones += '"labels": {"1": "class_b", "true": ["class_d"]}}]'
    assert load(saved(tmp_path, ones, "b.json")).task.labels == ("1", "true")
    rows = [{"text": f"t {i}", "label": bool(i % 2)} for i in range(8)]
    write(tmp_path / "bool.jsonl", rows)
    data = '{"source": "files", "train": "bool.jsonl"}'
    both = ones.replace('{"source": "synthetic"}', data)
    both = both.replace('"class_b"', "true").replace('"class_d"', "false")
    corpus = load(saved(tmp_path, both, "c.json"))
    table = corpus.splits["train"]
    true = [int(text.split()[1]) % 2 == 1 for text in table.text]
    np.testing.assert_array_equal(table.label == 0, true)


def test_the_example_of_the_documentation(tmp_path):
    corpus = load(task_sets.write_example(tmp_path))
    assert corpus.tasks.names == ("liked", "disliked", "asks", "states")
    assert corpus.tasks.held_out == (False, False, False, True)
    assert corpus.task.labels == ("no", "yes")
    held = corpus.splits["held_out_validation"]
    asks = np.array(["?" in text for text in held.text])
    np.testing.assert_array_equal(held.label, ~asks)


def test_movie_reviews_of_other_domains(tmp_path):
    if not (files.root() / "vader_icwsm_2014" / "nyt.jsonl").exists():
        movie_reviews.prepare()
    told = "Is the opinion positive?"
    tasks = [
        task(domain, description=told, data={"source": "movie_reviews", "task": domain})
        for domain in ("amazon", "nyt")
    ]
    tasks[1]["role"] = "held_out"
    corpus = load(saved(tmp_path, tasks))
    assert corpus.task.labels == ("negative", "positive")
    alone = sources.load(DataConfig(task="nyt"), 0).splits
    held = corpus.splits["held_out_test"]
    assert held.text == alone["test"].text
    np.testing.assert_array_equal(held.soft, alone["test"].soft)
    assert "held_out_train" not in corpus.splits


def test_a_held_out_domain_may_have_the_same_description(tmp_path, caplog):
    tasks = [task("a"), task("b", description="About a?", role="held_out")]
    tasks[1]["data"] = SYNTHETIC | {"num_examples": 65}
    load(saved(tmp_path, tasks))
    line = next(x for x in caplog.messages if "several tasks" in x)
    assert "'About a?' of a, b" in line


def test_the_config_of_the_run_gives_the_defaults(tmp_path):
    file = saved(tmp_path, [task("a", data={"source": "synthetic"}), task("b")])
    sizes = np.bincount(load(file, num_examples=40).splits["train"].task)
    assert sizes.tolist() == [40, 64]
    sizes = np.bincount(load(file, max_examples=7).splits["train"].task)
    assert sizes.tolist() == [7, 7]


def test_paths_begin_at_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "rows.jsonl", ROWS)
    write(tmp_path / "far.jsonl", ROWS)
    data = {"source": "files", "label": "positive"}
    tasks = [
        task("a", data=data | {"train": "rows.jsonl"}),
        task("b", data=data | {"train": str(tmp_path / "far.jsonl")}),
        task("c", data=data | {"train": "../far.jsonl"}),
    ]
    saved(tmp_path / "in", tasks)
    monkeypatch.chdir(tmp_path)
    assert len(load("in/set.yaml").tasks.names) == 3


# What is refused

NAMES = "at most 100 letters, digits, '_', '.' and '-', and no '.' or '-' first"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "[" * 3000 + "]" * 3000
HELD = task("b", role="held_out", description="About a?")
WRONG = {
    "empty": ("", "set.yaml: it is empty; expected one document"),
    "null": ("null", "set.yaml: it has no tasks; expected a list of tasks"),
    "no tasks": ("[]", "set.yaml: it has no tasks; expected a list of tasks"),
    "text": ("tasks", "set.yaml: its tasks are 'tasks'; expected a list of tasks"),
    "no yaml": ("a: [", "set.yaml:2: it is not YAML ("),
    "control": ("a: \x01", "set.yaml: it is not YAML ("),
    "two": ("[]\n---\n[]", "set.yaml: it has 2 documents; expected one"),
    "bomb": (
        BOMB,
        "set.yaml:6: the entries up to here, aliases included, exceed 20 MB",
    ),
    "endless": ("&a [*a]", "set.yaml:1: no anchor ends before the alias *a"),
    "deep": (DEEP, "set.yaml:1: lists and mappings are nested too deeply"),
    "tag": (
        "!!python/object:os.system []",
        "the tag 'tag:yaml.org...ect:os.system' is n",
    ),
    "twice": ("a: 1\na: 2", "set.yaml:3: the key 'a' occurs twice"),
    "complex": ("? [a]\n: b", "the key ['a'] is not a text"),
    "keys": ({"tasks": [], "task": 1}, "it has the key 'task'; expected a list"),
    "no key": ({"defaults": {}}, "it has no key tasks; expected a list of tasks"),
    "defaults": ({"tasks": [1], "defaults": [1]}, "its defaults are ['1']"),
    "default name": (
        {"tasks": [1], "defaults": {"name": "a"}},
        "its defaults have a name; expected a name in each task",
    ),
    "default field": (
        {"tasks": [task("a")], "defaults": {"names": "a"}},
        "task 1 of 1: it has the field 'names'; expected one of name, description",
    ),
    "item": ([task("a"), "b"], "set.yaml, task 2 of 2: it is 'b'; expected a mapping"),
    "field": ([task("a", roles="x")], "task 1 of 1: it has the field 'roles'"),
    "no name": ([{"description": "x"}], "set.yaml, task 1 of 1: it has no name"),
    "name": ([task("a/b")], f"its name is 'a/b'; expected {NAMES}"),
    "dots": ([task("..")], f"its name is '..'; expected {NAMES}"),
    "list": ([task(["a"])], f"its name is ['a']; expected {NAMES}"),
    "same": (
        [task("a"), task("b"), task("a", description="z")],
        "set.yaml, task a: tasks 1 and 3 of the file have this name; expected another",
    ),
    "same held": (
        [task("a"), task("a", role="held_out")],
        "have this name; one of them trains and one is held out; expected another",
    ),
    "told": (
        [{"name": "a", "data": SYNTHETIC}],
        "set.yaml, task a: it has no description; expected a text in the field",
    ),
    "none told": ([task("a", description=None)], "task a: it has no description"),
    "empty list": (
        [{"name": "a", "descriptions": [], "data": SYNTHETIC}],
        "task a: it has no description",
    ),
    "both": ([task("a", descriptions=["x"])], "it has both description and"),
    "listed": ([task("a", description=["x"])], "its description is ['x']; expected a"),
    "blank": ([task("a", description=" ")], "a description is ' '; expected a text"),
    "long": (
        [task("a", description="ä" * 100_000)],
        "task a: a description has 100,000 characters; expected at most 10,000",
    ),
    "role": ([task("a", role="test")], "its role is 'test'; expected one of train, he"),
    "held": ([HELD], "set.yaml: its 1 tasks all have the role held_out; expected one"),
    "weight": ([task("a", weight=0)], "its weight is '0'; expected a finite number ab"),
    "nan": ([task("a", weight=".nan")], "its weight is '.nan'; expected a finite"),
    "inf": ([task("a", weight="inf")], "its weight is 'inf'; expected a finite number"),
    "weights": ([task("a", weight=[1])], "its weight is ['1']; expected a finite"),
    "no data": ([task("a", data=None)], "set.yaml, task a: it has no data; expected"),
    "no source": (
        [task("a", data={"train": "x"})],
        "without a source; expected data: ",
    ),
    "source": (
        [task("a", data={"source": "web"})],
        "task a: data.source is 'web'; expected one of tfds, glue_dir, files, movie_re",
    ),
    "sources": ([task("a", data={"source": ["a"]})], "data.source is ['a']; expected"),
    "nested": (
        [task("a", data={"source": "tasks"})],
        "set.yaml, task a: data.source is 'tasks' for a task of a set; expected the",
    ),
    "data field": (
        [task("a", data=SYNTHETIC | {"length": 1})],
        "task a: data has no field 'length'; expected one of source, task, dir, train",
    ),
    "data value": (
        [task("a", data=SYNTHETIC | {"num_examples": "many"})],
        "task a: data.num_examples is 'many'; expected a whole number",
    ),
    "data range": (
        [task("a", data=SYNTHETIC | {"num_examples": 3})],
        "set.yaml, task a: data.num_examples is 3; expected at least 32, and finite",
    ),
    "data choice": (
        [task("a", data=SYNTHETIC | {"on_bad_row": "drop"})],
        "task a: data.on_bad_row is 'drop'; expected one of error, skip",
    ),
    "data null": (
        [task("a", data=SYNTHETIC | {"task": None})],
        "data.task is None; ex",
    ),
    "labels": ([task("a", labels=["x", "y"])], "its labels are ['x', 'y']; expected a"),
    "one label": ([task("a", labels={"x": "y"})], "two or more names to the classes"),
    "blank label": (
        [task("a", labels={"": "class_b", "x": "class_d"})],
        "task a: a label has the name ''; expected a text",
    ),
    "no class": (
        [task("a", labels={"x": [], "y": "class_d"})],
        "task a: the label 'x' stands for []; expected a class of the data, or a list",
    ),
    "class": (
        [task("a", labels={"x": "class_b", "y": "class_z"})],
        "task a: the label 'y' stands for 'class_z'; expected a class of the data (cla",
    ),
    "class twice": (
        [task("a", labels={"x": ["class_b", "class_d"], "y": "class_d"})],
        "task a: the labels 'x' and 'y' both stand for 'class_d'; expected one label",
    ),
    "class left": (
        [
            task(
                "a",
                data=SYNTHETIC | {"num_classes": 3},
                labels={"x": "class_b", "y": "class_d"},
            )
        ],
        "set.yaml, task a: no label stands for the class 'class_f' of the data; expect",
    ),
    "trained": (
        [task("a"), HELD],
        "set.yaml, task b: it is held out, but task a trains with the same data, label",
    ),
}
WRONG |= {
    f"common {name}": (
        [task("a", data=SYNTHETIC | {name: 1})],
        f"task a: data.{name} cannot differ between tasks; expected config.data.{name}",
    )
    for name in ("max_length", "packing", "pad_to_max", "condition")
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(tmp_path, name):
    tasks, message = WRONG[name]
    file = saved(tmp_path, tasks)
    with fuzzing.in_time():
        line = refused(file)
    assert message in line and line.startswith(str(tmp_path / "set.yaml")), line


WRONG_JSON = {
    "empty": ("", "set.json: it is empty; expected one document"),
    "no json": ("[", "set.json: it is not JSON ("),
    "twice": ('{"a": 1, "a": 2}', "set.json: the key 'a' occurs twice"),
    "deep": ("[" * 100_000, "set.json: it is not JSON ("),
    "nested": (
        "[" * 50 + "]" * 50,
        "set.json: lists and mappings are nested too deeply; expected one document",
    ),
    "number": ("[1e999]", "task 1 of 1: it is '1e999'; expected a mapping"),
    "surrogate": (
        '[{"name": "a", "description": "\\ud800"}]',
        "set.json, task a: a description is '\\ud800'; it is not Unicode; expected who",
    ),
    "path": (
        '[{"name": "a", "description": "b", '
        '"data": {"source": "files", "train": "\\u0000"}}]',
        "task a: data.train is '\\x00'; expected a path, or gs://..., in UTF-8",
    ),
}


@pytest.mark.parametrize("name", WRONG_JSON)
def test_wrong_json_is_one_line(tmp_path, name):
    text, message = WRONG_JSON[name]
    line = refused(saved(tmp_path, text, "set.json"))
    assert message in line, line


def test_what_is_no_file_of_tasks(tmp_path):
    assert "set.yaml does not exist; expected a file" in refused(f"{tmp_path}/set.yaml")
    (tmp_path / "dir.yml").mkdir()
    assert "dir.yml is a folder; expected a file" in refused(f"{tmp_path}/dir.yml")
    line = refused(saved(tmp_path, "[]", "set.toml"))
    assert "has suffix '.toml'; expected one of .yaml, .yml, .json" in line
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    assert "byte 0xff in line 1 is not UTF-8" in refused(f"{tmp_path}/a.yaml")
    with open(tmp_path / "big.json", "wb") as file:
        file.truncate(documents.MAX_BYTES + 10**6)
    line = refused(f"{tmp_path}/big.json")
    assert "big.json has 21.0 MB; expected at most 20 MB" in line


def test_errors_of_a_source_name_the_task(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    data = {"source": "files", "train": "rows.jsonl"}

    def told(**fields):
        return refused(saved(tmp_path, [task("a"), task("b", data=data | fields)]))

    start = f"{tmp_path}/set.yaml, task b: "
    assert told() == (
        f"{start}{tmp_path}/rows.jsonl has no column label; it has text, positive, "
        "stars, kind, question. Name the column with data.label=COLUMN"
    )
    assert told(train="x.jsonl").startswith(f"{start}{tmp_path}/x.jsonl does not exist")
    assert "task b: data.train is the address 'http://x'" in told(train="http://x")
    write(tmp_path / "bad.jsonl", [*ROWS, {"text": "", "positive": 1}])
    bad = {"train": "bad.jsonl", "label": "positive"}
    assert told(**bad).startswith(f"{start}{tmp_path}/bad.jsonl:49: 'text' is ''")
    labels = {"class_b": "0", "class_d": "1"}
    skip = task("b", data=data | bad | {"on_bad_row": "skip"}, labels=labels)
    assert load(saved(tmp_path, [task("a"), skip])).tasks.names == ("a", "b")


def test_tasks_that_do_not_fit_together(tmp_path):
    write(tmp_path / "pairs.jsonl", PAIRS)
    pairs = task("b", data={"source": "files", "train": "pairs.jsonl"})
    assert "task b: its examples have two texts, those of task a not" in refused(
        saved(tmp_path, [task("a"), pairs])
    )
    rows = [{"text": f"t {i}", "label": i / 8} for i in range(48)]
    write(tmp_path / "numbers.jsonl", rows)
    number = task("b", data={"source": "files", "train": "numbers.jsonl"})
    assert "task b: its labels are numbers (a regression); expected classes" in refused(
        saved(tmp_path, [task("a"), number])
    )
    corpus = load(saved(tmp_path, [pairs]))
    table = corpus.splits["train"]
    assert (
        corpus.task.pair and [x.replace("u", "t") for x in table.text_b] == table.text
    )


def test_the_same_task_held_out_under_other_words(tmp_path):
    labels = {"no": "class_b", "yes": "class_d"}
    train = task("a", labels=labels, description="x") | {"descriptions": ["x", "y"]}
    del train["description"]
    same = {"class_b": "class_b", "class_d": ["class_d"]}
    held = task("b", role="held_out", labels=dict(reversed(labels.items())))
    del held["description"]
    for told, other, wrong in (
        (["y"], {}, True),
        (["z", " Y "], {}, True),
        (["z"], {}, False),
        (["y"], {"labels": {"yes": "class_b", "no": "class_d"}}, False),
        (["y"], {"data": SYNTHETIC | {"num_examples": 65}}, False),
    ):
        tasks = [train, held | {"descriptions": told} | other]
        if wrong:
            assert "task b: it is held out, but task a" in refused(
                saved(tmp_path, tasks)
            )
        else:
            assert load(saved(tmp_path, tasks)).tasks.held_out == (False, True)
    tasks = [task("a"), HELD | {"labels": same}]
    assert "task b: it is held out, but task a" in refused(saved(tmp_path, tasks))


def test_a_held_out_task_whose_file_and_classes_are_spelled_in_another_way(tmp_path):
    rows = ["text\tlabel", *(f"text {i}\t{i % 2}" for i in range(8))]
    (tmp_path / "rows.tsv").write_text("\n".join(rows) + "\n")

    def made(name, path, one, **fields):
        data = {"source": "files", "train": path, "validation": path}
        return {"name": name, "description": "x", "data": data, **fields} | {
            "labels": {"no": "0", "yes": one}
        }

    train = made("a", "rows.tsv", "1")
    for path, one in (("rows.tsv", "1.0"), (str(tmp_path / "rows.tsv"), "1")):
        tasks = [train, made("b", path, one, role="held_out")]
        assert "task b: it is held out, but task a" in refused(saved(tmp_path, tasks))


def test_a_negation_that_is_a_description_of_its_own_task(tmp_path):
    for fields in ({"negations": ["is it  X?"]}, {"negations": ["no", "p"]}):
        own = task("a", description="Is it x?") | {"paraphrases": ["P"]} | fields
        wanted = "is among its descriptions and its negations; expected negations that"
        assert wanted in refused(saved(tmp_path, [own]))


def test_labels_that_differ_in_case_are_refused(tmp_path):
    spelled = {"No": "class_b", "Yes": "class_d"}
    plain = {"no": "class_b", "yes": "class_d"}
    tasks = [task("a", labels=plain), task("b", labels=spelled, description="z")]
    message = refused(saved(tmp_path, tasks))
    assert "task b: its labels are No, Yes, and those of task a are no, yes" in message


def test_fields_of_the_run_that_do_not_go_with_sets(tmp_path):
    file = saved(tmp_path, [task("a")])
    for fields in ({"task": "cola"}, {"train": "x.csv"}, {"classes": ("a", "b")}):
        name = next(iter(fields))
        line = refused(file, **fields)
        assert f"config.data.{name} is " in line and f"expected no data.{name}" in line
    config = DataConfig(source="tasks", condition="vector")
    with pytest.raises(UserError, match="data.source=tasks has no columns of yours"):
        given = ConditionConfig(source="given")
        sources.load(config, 0, given, TasksConfig(file=file))
    line = refused("")
    assert (
        "config.tasks.file is empty; expected a file of tasks with data.source=" in line
    )
    with pytest.raises(UserError, match="config.tasks.file is empty"):
        sources.load(DataConfig(source="tasks"), 0)
    for act in (lambda *x: sources.load(x[0], 0, None, x[1]), sources.prepare):
        with pytest.raises(
            UserError, match="but config.data.source is 'synthetic', wh"
        ):
            act(DataConfig(source="synthetic"), TasksConfig(file=file))


# Large sets, and fuzz


def test_ten_thousand_tasks_are_read_and_more_are_refused(tmp_path):
    one = (
        "- {name: t%d, description: Is it %d?, data: {source: files, train: r.jsonl}}\n"
    )
    write(tmp_path / "r.jsonl", PAIRS)
    text = "".join(one % (i, i) for i in range(10_001))
    start = time.process_time()
    line = refused(saved(tmp_path, text))
    assert "set.yaml: it has 10,001 tasks; expected at most 10,000" in line
    corpus = load(saved(tmp_path, text[: text.rindex("- ")]))
    assert len(corpus.tasks.names) == 10_000 and len(unions.describe(corpus)) == 10_001
    train = corpus.splits["train"]
    assert len(set(train.ids.tolist())) == len(train.ids) == 10_000 * 4
    assert time.process_time() - start < 30


def test_changed_files_end_in_a_set_or_in_one_line(tmp_path):
    for pick in range(2):
        task_sets.read_changed(fuzzing.Change(pick, [], []), tmp_path)
    counts = fuzzing.run(task_sets.read_changed, tmp_path, 300, fixed=True)
    assert counts["examples"] >= 300 and 0 < counts["refused"] < counts["examples"]


# Whole commands

TINY = (
    "--config=smoke:method=lora",
    "--config.data.source=tasks",
    "--config.data.max_length=32",
    "--config.optim.num_epochs=1",
)


def test_prepare_shows_the_tasks(tmp_path, capsys):
    held = task("c", role="held_out", data=SYNTHETIC | {"num_examples": 80})
    file = saved(tmp_path, [task("a"), task("b"), held])
    assert cli.main(["prepare", *TINY, f"--config.tasks.file={file}"]) == 0
    told = capsys.readouterr().err.splitlines()
    lines = [x for x in told if x.startswith("task ")]
    assert len(lines) == 3
    shares = r"class_b \d\d\.\d%, class_d \d\d\.\d%"
    for name, line in zip("ab", lines, strict=False):
        sizes = "train 64, calibration 100, validation 100, test 100"
        assert re.fullmatch(f"task {name}, trains: {sizes}; {shares}", line), line
    assert re.fullmatch(
        f"task c, held out: validation 100, test 100; {shares}", lines[2]
    )
    assert "3 tasks, of which 1 held out; 928 examples" in told
    assert "data synthetic: nothing to prepare" in told
    file = saved(tmp_path, [task("a", data={"source": "files"})])
    assert cli.main(["prepare", *TINY, f"--config.tasks.file={file}"]) == 2


def test_a_run_without_conditions_learns_the_union(tmp_path, monkeypatch):
    labels = {"no": "class_b", "yes": "class_d"}
    tasks = [task("a", labels=labels), task("b", labels=dict(reversed(labels.items())))]
    tasks.append(task("c", role="held_out", labels=labels, description="C?"))
    saved(tmp_path, tasks)
    monkeypatch.chdir(tmp_path)
    train = ["train", *TINY, "--config.tasks.file=set.yaml", "--workdir=run"]
    assert cli.main(train) == 0
    record = json.loads(Path("run/config.json").read_text())
    assert record["config"]["tasks"]["file"] == str(tmp_path / "set.yaml")
    assert record["task"]["labels"] == ["no", "yes"]
    monkeypatch.chdir("/")
    for split in ("test", "held_out_test"):
        where = f"--workdir={tmp_path / 'run'}"
        assert cli.main(["evaluate", where, f"--split={split}"]) == 0
        folder = tmp_path / "run" / "eval" / split
        found = json.loads((folder / "metrics.json").read_text())
        assert 0 < found["nll"] < 2
