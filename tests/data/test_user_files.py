import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import sources
from hypelora_jax.errors import UserError

ROWS = [
    {"text": f'say "{i}", or\nnot', "text_b": f"b\t{i}", "label": "ny"[i % 2]}
    for i in range(40)
]


def quote(cell):
    return '"' + str(cell).replace('"', '""') + '"'


def write(path, rows):
    names = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        by = "," if path.suffix == ".csv" else "\t"
        lines = [names] + [[r[n] for n in names] for r in rows]
        path.write_text("".join(by.join(map(quote, x)) + "\r\n" for x in lines))
    return str(path)


def load(**fields):
    return sources.load(DataConfig(source="files", **fields), seed=0)


def numbered(labels):
    return [{"text": f"t {i}", "label": x} for i, x in enumerate(labels)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_with_columns_by_name(tmp_path, suffix):
    rows = ROWS
    if suffix == ".tsv":  # where a row is one line
        rows = [{**row, "text": row["text"].replace("\n", " ")} for row in ROWS]
    train = write(tmp_path / f"train{suffix}", rows)
    dev = write(tmp_path / f"dev{suffix}", rows[:5])
    test = write(tmp_path / f"test{suffix}", [{"text": "x", "text_b": "y"}])
    corpus = load(train=train, validation=dev, test=test)
    assert corpus.task.labels == ("n", "y") and corpus.task.pair
    table = corpus.splits["validation"]
    assert table.text == [r["text"] for r in rows[:5]]
    assert table.text_b == [r["text_b"] for r in ROWS[:5]]
    np.testing.assert_array_equal(table.label, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(corpus.splits["test"].label, [-1])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_given_columns_and_integer_labels(tmp_path, suffix):
    rows = [{"review": f"r {i}", "stars": (2, 10)[i % 2]} for i in range(20)]
    train = write(tmp_path / f"train{suffix}", rows)
    corpus = load(train=train, validation=train, text="review", label="stars")
    assert corpus.task.labels == ("2", "10")  # by number, not by letter
    assert corpus.splits["validation"].text_b is None


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(GOOD), encoding="utf-8-sig")
    assert load(train=str(path), validation=str(path)).task.labels == ("n", "y")


def test_held_out_validation_and_calibration(tmp_path, caplog):
    caplog.set_level("INFO")
    train = write(tmp_path / "a.csv", numbered(["n", "y"] * 200))
    splits = load(train=train).splits
    sizes = {name: len(t.ids) for name, t in splits.items()}
    assert sizes == {"train": 260, "calibration": 100, "validation": 40}
    assert len(set(np.concatenate([t.ids for t in splits.values()]))) == 400
    assert "40 of 400 train examples are held out" in caplog.text


def test_calibration_file_of_its_own(tmp_path):
    train = write(tmp_path / "a.csv", numbered(["n", "y"] * 50))
    own = write(tmp_path / "c.csv", numbered(["n", "y"] * 3))
    splits = load(train=train, validation=train, calibration=own).splits
    assert len(splits["calibration"].ids) == 6 and len(splits["train"].ids) == 100


def test_real_numbers_make_a_regression(tmp_path):
    path = write(tmp_path / "a.csv", numbered([1, 2.5] * 20))
    corpus = load(train=path, validation=path)
    assert corpus.task.kind == "regression" and corpus.task.num_outputs == 1
    assert corpus.splits["train"].label.dtype == np.float32
    assert load(train=path, task="classification").task.labels == ("1", "2.5")
    whole = write(tmp_path / "b.jsonl", numbered([1.0, 2.0] * 20))
    assert load(train=whole).task.labels == ("1", "2")
    assert load(train=whole, task="regression").task.kind == "regression"


def test_classes_that_train_lacks_and_their_order(tmp_path):
    path = write(tmp_path / "a.csv", numbered(["n", "y"] * 20))
    names = ("y", "maybe", "n")
    corpus = load(train=path, validation=path, classes=names)
    assert corpus.task.labels == names
    np.testing.assert_array_equal(corpus.splits["validation"].label[:3], [2, 0, 2])
    with pytest.raises(
        UserError, match="a.csv:3: unknown label 'y'; expected a class of train"
    ):
        load(train=path, classes=("n", "no"))
    real = write(tmp_path / "b.csv", numbered([1, 2.5] * 20))
    with pytest.raises(UserError, match="are numbers; expected no data.classes, or"):
        load(train=real, classes=("1", "2.5"))


def text_of(*lines):
    return lambda path: path.write_text("\n".join(lines) + "\n")


GOOD = ["text,label", *("a,n", "b,y") * 10]
BAD = {  # file's name, what it holds, message
    "empty": ("v.csv", lambda p: p.write_text(""), "v.csv is empty"),
    "header": ("v.csv", text_of("text,label"), "v.csv has no usable rows"),
    "missing": ("v.csv", lambda p: None, "v.csv does not exist"),
    "folder": ("v.csv", lambda p: p.mkdir(), "v.csv is a folder"),
    "column": (
        "v.csv",
        text_of("body,label", "a,n"),
        "no column text or sentence.*; it has body, label. Name the column",
    ),
    "nolabel": ("v.csv", text_of("text,y", "a,n"), "no column label; it has text, y"),
    "unknown": (
        "v.csv",
        text_of(*GOOD, "c,maybe"),
        r"v.csv:22: unknown label 'maybe'; expected a class of train \(n, y\)",
    ),
    "nolabelrow": ("v.csv", text_of("text,label", "a,n", "b,"), "v.csv:3: the label i"),
    "utf8": (
        "v.csv",
        lambda p: p.write_bytes(b"text,label\na,n\nb\xe9,y\n"),
        "v.csv:3: byte 0xe9 is not UTF-8",
    ),
    "text": (
        "v.csv",
        text_of("text,label", "a,n", " ,y"),
        "v.csv:3: 'text' is ' '; expected a text that is not empty",
    ),
    "ragged": (
        "v.csv",
        text_of("text,label", "a,n", "b"),
        "v.csv:3: the row has 1 fields; expected",
    ),
    "ragged+": (
        "v.csv",
        text_of("text,label", "a,n", "b,c,y"),
        "v.csv:3: the row has 3 fields",
    ),
    "quote": ("v.csv", text_of("text,label", "a,n", '"b,y'), "v.csv:3: .*RFC 4180"),
    "lines_tsv": (
        "v.tsv",
        text_of("text\tlabel", '"b', 'c"\ty'),
        "v.tsv:2: the row has 1 fields; .*In TSV a row is one line",
    ),
    "json": (
        "v.jsonl",
        text_of('{"text": "a", "label": "n"}', "{"),
        "v.jsonl:2: the line is not J",
    ),
    "list": (
        "v.jsonl",
        text_of("[1]"),
        "v.jsonl:1: the line is a JSON list; expected one object",
    ),
    "number": (
        "v.jsonl",
        text_of('{"text": 3, "label": "n"}'),
        "1: 'text' is 3; expected",
    ),
    "field": (
        "v.jsonl",
        text_of('{"text": "a", "label": "n"}', '{"label": "n"}'),
        "v.jsonl:2: 'text' is None; expected a text",
    ),
    "half": (
        "v.jsonl",
        text_of('{"text": "a", "label": "n"}', '{"text": "\\ud800", "label": "n"}'),
        r"v.jsonl:2: 'text' is '\\ud800'; it is not Unicode",
    ),
    "label": ("v.jsonl", text_of('{"text": "a", "label": [1]}'), "1: the label is .1."),
    "digits": (
        "v.jsonl",
        text_of('{"text": "a", "label": 1' + "0" * 5000 + "}"),
        "v.jsonl:1: the line is not JSON",
    ),
    "twice": ("v.csv", text_of("text,label,text", "a,n,b"), "has two columns 'text'"),
    "breaks": (
        "v.csv",
        text_of('"body\nof",label', "a,n"),
        "no column text .*it has body of, label",
    ),
    "suffix": (
        "v.xls",
        text_of("a"),
        "suffix '.xls'; expected one of .jsonl, .ndjson, .csv",
    ),
    "parquet": ("v.parquet", text_of("nonsense"), "v.parquet is not a Parquet file"),
    "pair": ("v.csv", text_of("text,text_b,label", "a,b,n"), "has two texts per exam"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_refused_in_one_line(tmp_path, case):
    name, fill, message = BAD[case]
    text_of(*GOOD)(tmp_path / "train.csv")
    fill(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        load(train=str(tmp_path / "train.csv"), validation=str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["n"] * 10, r"has 1 class \(n\); expected two or more"),
        ([0.5, 1.5, "nan", 2], "train.csv:4: label 'nan'; expected a finite number"),
        ([0.5, 1.5, "inf"], "train.csv:4: label 'inf'; expected a finite number"),
        ([0, 1, "nan"], "train.csv:4: unknown label 'nan'"),
        (["n", "y"], "train has 2 examples in 2 classes, too few to hold some of"),
    ],
)
def test_bad_train_labels(tmp_path, labels, message):
    train = write(tmp_path / "train.csv", numbered(labels))
    with pytest.raises(UserError, match=message):
        load(train=train, validation=train)


def test_nan_of_parquet_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", numbered([0.5, 1.5, float("nan")]))
    with pytest.raises(UserError, match="a.parquet:3: label nan; expected a finite"):
        load(train=path)


def test_fields_of_the_config_are_checked(tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    with pytest.raises(UserError, match="data.train is empty; expected a file"):
        load()
    with pytest.raises(
        UserError, match="task is 'cola'; expected one of classification"
    ):
        load(train=path, task="cola")
    with pytest.raises(UserError, match="no column 'body'; it has text, text_b, label"):
        load(train=path, text="body")
    with pytest.raises(UserError, match="no column 'second'"):
        load(train=path, text_b="second")
    with pytest.raises(UserError, match="has one text per example; expected two"):
        load(train=path, validation=write(tmp_path / "v.csv", numbered("ny")))


def test_bad_rows_are_skipped_and_counted_once(tmp_path, caplog):
    text_of(*GOOD, " ,n", "x", "y,")(tmp_path / "train.csv")
    text_of("text,label", "a,n", "b,other")(tmp_path / "v.csv")
    splits = load(
        train=str(tmp_path / "train.csv"),
        validation=str(tmp_path / "v.csv"),
        on_bad_row="skip",
    ).splits
    assert len(splits["train"].ids) + len(splits["calibration"].ids) == 20
    assert len(splits["validation"].ids) == 1
    assert caplog.text.count("skipped 4 bad rows, the first:") == 1
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
