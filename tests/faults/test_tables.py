"""Tables of text: each fault of public reports, and two laws of files handed on.

F11 to F22 are numbers of a log of bug reports about other programs, tried on this one.
"""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import step_zero

from hypelora_jax import cli, files
from hypelora_jax.commands.shared import continuation
from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import formats, sources
from hypelora_jax.data.sources.bad_rows import BadRows
from hypelora_jax.data.sources.raw_rows import read_raw
from hypelora_jax.errors import UserError
from hypelora_jax.inference import inputs
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train import session as session_lib

pytestmark = pytest.mark.usefixtures("load_once")

UP, DOWN = ("fine", "warm", "lively"), ("dull", "flat", "slow")
ROWS = [
    (f"a {(UP if i % 2 else DOWN)[i % 3]} story {i}", str(i % 2)) for i in range(40)
]
TEXTS = [text for text, _ in ROWS]


def table(rows=ROWS, header=("text", "label"), by=",", end="\n"):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=by, lineterminator=end).writerows([header, *rows])
    return buffer.getvalue()


def write(path, content):
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def json_lines(rows):
    return "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows)


def load(train, **fields):
    return sources.load(DataConfig(source="files", train=train, **fields), seed=0)


def texts_of_train(path):
    return read_raw(path, DataConfig(), "test", BadRows("error")).text


def texts_of_predict(path):
    sheet = formats.read(path, formats.format_of(path))
    names = inputs.names(False, "", "", ("", ""))
    found = list(inputs.read(sheet, names)[1])
    for bad in (one for one in found if not isinstance(one, inputs.Example)):
        raise UserError(f"{path}:{bad.line}: {bad.what}")
    return [one.texts[0] for one in found]


# Law: what train reads predict reads


def with_quotes(by):
    """Lines of a table whose quotes are letters: 40 texts, two with one quote."""
    lines = [f"{text}{by}{label}" for text, label in ROWS]
    lines[5], lines[12] = f'"Great stuff, said nobody{by}0', f'all fine"{by}1'
    return f"text{by}label\n" + "\n".join(lines) + "\n"


QUOTED = [
    *TEXTS[:5],
    '"Great stuff, said nobody',
    *TEXTS[6:12],
    'all fine"',
    *TEXTS[13:],
]
SPACED = "".join(f'{label}, "{text}"\n' for text, label in ROWS)
LATIN = pa.array([b"caf\xe9", *(t.encode() for t in TEXTS[1:])], pa.binary())
NOTE = pa.StringArray.from_buffers(40, LATIN.buffers()[1], LATIN.buffers()[2])
NUMBERS = [int(label) for _, label in ROWS]
LONG = "word " * 30_000 + "end"


def columns(**more):
    return pa.table({"text": TEXTS, "label": NUMBERS, **more})


VARIANTS = {  # name -> (suffix, content, texts)
    "f12_long_field": (".csv", table([*ROWS, (LONG, "1")]), [*TEXTS, LONG]),
    "f12_long_quoted": (
        ".csv",
        table([(f'{LONG},"\n', "1"), *ROWS]),
        [f'{LONG},"\n', *TEXTS],
    ),
    "f12_long_tsv": (".tsv", table([*ROWS, (LONG, "1")], by="\t"), [*TEXTS, LONG]),
    "f13_quotes": (".tsv", with_quotes("\t"), QUOTED),
    "f13_whole": (
        ".tsv",
        'text\tlabel\n"a ""b"""\t1\n"a" b"\t0\n"\t1\n"x\ty"\t1\n',
        ['a "b"', '"a" b"', '"', "x\ty"],
    ),
    "f14_cr": (".csv", table(end="\r"), TEXTS),
    "f14_cr_tsv": (".tsv", table(by="\t", end="\r"), TEXTS),
    "f14_cr_json": (".jsonl", json_lines(ROWS).replace("\n", "\r"), TEXTS),
    "f14_crlf": (".csv", table(end="\r\n"), TEXTS),
    "f14_mixed": (".csv", table(end="\r\n") + table(end="\r")[11:], 2 * TEXTS),
    "f14_cr_in_quotes": (".csv", 'text\n"a\rb"\n"c\r\nd"\n', ["a\rb", "c\r\nd"]),
    "f15_blank_first": (".csv", "\n" + table(), TEXTS),
    "f15_blank_lines": (".csv", "\r\n  \r\n,,\r\n" + table(end="\r\n"), TEXTS),
    "f15_blank_mark": (".tsv", "\ufeff\n\n" + table(by="\t"), TEXTS),
    "f16_empty": (
        ".csv",
        table([(*row, "", "") for row in ROWS], ("text", "label", "", "")),
        TEXTS,
    ),
    "f16_repeated": (
        ".csv",
        table([("n", *row, "m") for row in ROWS], ("note", "text", "label", "note")),
        TEXTS,
    ),
    "f17_utf16": (".csv", table().encode("utf-16"), TEXTS),
    "f17_utf16_be": (".tsv", b"\xfe\xff" + table(by="\t").encode("utf-16-be"), TEXTS),
    "f17_utf16_bare": (".csv", table().encode("utf-16-le"), TEXTS),
    "f17_utf16_json": (".jsonl", json_lines(ROWS).encode("utf-16"), TEXTS),
    "f17_utf32": (".csv", table().encode("utf-32"), TEXTS),
    "semicolons": (".csv", table([(f"{t}, so", y) for t, y in ROWS], by=";"), None),
    "hint": (".csv", "sep=;\r\n" + table(by=";"), TEXTS),
    "hint_of_commas": (".csv", '"sep=,"\n' + table(), TEXTS),
    "tabs_in_csv": (".csv", table(by="\t"), TEXTS),
    "space_before_quote": (".csv", "label, text\n" + SPACED, TEXTS),
    "json": (".jsonl", "\n \n" + json_lines(ROWS), TEXTS),
    "json_other_suffix": (".ndjson", json_lines(ROWS), TEXTS),
    "parquet": (".parquet", columns(), TEXTS),
    "f20_far_date": (
        ".parquet",
        columns(when=pa.array([10**7] * 40, pa.date32())),
        TEXTS,
    ),
    "f20_nanoseconds": (
        ".parquet",
        columns(when=pa.array([1731437100123456789] * 40, pa.timestamp("ns"))),
        TEXTS,
    ),
    "f20_zone": (
        ".parquet",
        columns(when=pa.array([1] * 40, pa.timestamp("us", "Not/AZone"))),
        TEXTS,
    ),
    "f20_latin1_note": (".parquet", columns(note=NOTE), TEXTS),
    "f21_same_names": (
        ".parquet",
        pa.Table.from_arrays([pa.array(TEXTS)] * 3, names=["text", "x", "x"]),
        TEXTS,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_train_reads_predict_reads(tmp_path, name):
    suffix, content, texts = VARIANTS[name]
    path = write(tmp_path / f"in{suffix}", content)
    texts = texts or [f"{text}, so" for text in TEXTS]
    assert texts_of_train(path) == texts
    assert texts_of_predict(path) == texts


REFUSED = {  # name -> (suffix, content, what both say)
    "f16_asked_for": (".csv", "text,text,label\na,b,1\n", "has two columns 'text'"),
    "f20_latin1_text": (
        ".parquet",
        pa.table({"text": NOTE}),
        "in.parquet:1: column 't",
    ),
    "f21_asked_for": (
        ".parquet",
        pa.Table.from_arrays([pa.array(TEXTS)] * 2, names=["text", "text"]),
        "has two columns 'text'",
    ),
    "ragged": (".csv", "text,label\na,1\nb,1,\n", "in.csv:3: the row has 3 fields"),
    "lines_in_tsv": (".tsv", 'text\tn\n"a\nb"\t1\n', "In TSV a row is one line"),
    "open_quote": (".csv", 'text\n"a\nb\n', "in.csv:2: a quote is opened and not cl"),
    "latin1": (".csv", b"text\na\ncaf\xe9\n", "in.csv:3: byte 0xe9 is not UTF-8"),
    "latin1_header": (".csv", b"text,caf\xe9\na,b\n", "in.csv:1: byte 0xe9 is not UTF"),
    "half_utf16": (".csv", table().encode("utf-16")[:-1], "in.csv:41: byte 0xff"),
    "keys": (".jsonl", '{"text": "a", "text": "b"}', "in.jsonl:1: the key 'text' occ"),
    "not_parquet": (".parquet", "text\n", "in.parquet is not a Parquet file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_train_refuses_predict_refuses_in_one_line(tmp_path, name):
    suffix, content, what = REFUSED[name]
    path = write(tmp_path / f"in{suffix}", content)
    with pytest.raises(UserError) as of_train:
        texts_of_train(path)
    assert what in str(of_train.value) and "\n" not in str(of_train.value)
    with pytest.raises(UserError) as of_predict:
        texts_of_predict(path)
    assert what in str(of_predict.value) and "\n" not in str(of_predict.value)


def test_what_is_assumed_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    for name, said in {
        "semicolons": "the fields are separated by semicolons",
        "hint": "the fields are separated by semicolons",
        "tabs_in_csv": "the fields are separated by tabs",
        "f13_quotes": "in.tsv:7: a field begins with a quote that does not end it",
        "f16_repeated": "has several columns note; the later ones are read as note_4",
        "f17_utf16": "in.csv is UTF-16; it is read as that",
        "f20_latin1_note": "'note' has byte 0xe9, which is not UTF-8; such cells are l",
    }.items():
        caplog.clear()
        suffix, content, _ = VARIANTS[name]
        texts_of_predict(write(tmp_path / f"in{suffix}", content))
        assert said in caplog.text and len(caplog.records) == 1, name
    caplog.clear()
    texts_of_train(write(tmp_path / "in.parquet", VARIANTS["f20_latin1_note"][1]))
    texts_of_predict(write(tmp_path / "in.csv", table()))
    assert not caplog.records  # nothing was assumed


# Law: metrics of what predict wrote are those of evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def made():
    """A session of two classes, for runs that differ in names and files."""
    return step_zero.session(step_zero.settings(), by=1.0)


def run_of(path, made, labels, file, **data):
    """A run whose splits are all read from a file."""
    data = {
        "source": "files",
        "max_length": 32,
        "train": file,
        "validation": file,
    } | data
    made = made._replace(
        settings=step_zero.settings(data=data), task=made.task._replace(labels=labels)
    )
    return step_zero.save(path, made, temperature=1.7)


def predict(run, *flags):
    return cli.main(["predict", f"--workdir={run}", *flags])


def judged(run, source, target, capsys):
    """The metrics of what predict writes of a file."""
    assert predict(run, f"--input={source}", f"--output={target}") == 0
    capsys.readouterr()
    assert cli.main(["metrics", f"--predictions={target}"]) == 0
    return json.loads(capsys.readouterr().out)


def labelled(suffix, rows, label):
    """A file with an id, and with a column that looks like a probability."""
    header = ("id", "text", label, "prob_old")
    rows = [(i, text, y, 0.5) for i, (text, y) in enumerate(rows)]
    if suffix == "jsonl":
        return "".join(
            json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows
        )
    return table(rows, header, "\t" if suffix == "tsv" else ",")


@pytest.mark.parametrize(
    ("labels", "column"),
    [(("0", "1"), "label"), (("it's, 'good'", 'so, "so"'), "stars")],
)
def test_f11_metrics_of_what_predict_wrote(
    folder, made, tmp_path, capsys, labels, column
):
    rows = [(text, labels[int(y)]) for text, y in ROWS]
    file = write(tmp_path / "in.csv", labelled("csv", rows, column))
    data = {} if column == "label" else {"label": column}
    run = run_of(folder / column, made, labels, file, **data)
    assert cli.main(["evaluate", f"--workdir={run}"]) == 0
    wanted = json.loads(capsys.readouterr().out.splitlines()[-1])
    for suffix in ("csv", "tsv", "jsonl"):
        source = write(tmp_path / f"in.{suffix}", labelled(suffix, rows, column))
        got = judged(run, source, tmp_path / f"out.{suffix}", capsys)
        assert got["n"] == 40 and got["accuracy"] == wanted["accuracy"] < 1
        for key, value in got.items():
            assert value == pytest.approx(wanted[key], abs=1e-9), (suffix, key)
    if labels == ("0", "1"):  # 1.0 is the class 1 to metrics too, and -1 is no label
        rows = [*((text, f"{y}.0") for text, y in ROWS), ("a story", "-1")]
        source = write(tmp_path / "in.tsv", labelled("tsv", rows, column))
        got = judged(run, source, tmp_path / "out.jsonl", capsys)
        assert got["n"] == 40 and got["accuracy"] == wanted["accuracy"]


# F12 to F17 of whole commands


@pytest.fixture(scope="module")
def run(folder, made):
    return step_zero.save(folder / "plain", made)


def test_f13_forty_lines_in_forty_answers_out(run, tmp_path):
    source, target = write(tmp_path / "in.tsv", with_quotes("\t")), tmp_path / "o.tsv"
    assert predict(run, f"--input={source}", f"--output={target}") == 0
    assert len(target.read_text().splitlines()) == 41
    assert texts_of_predict(str(target)) == QUOTED


def test_f16_all_columns_are_written_back(run, tmp_path):
    source = write(tmp_path / "in.csv", "note,text,,note\nm,ab,x,n\n")
    for suffix in ("csv", "jsonl"):
        target = tmp_path / f"out.{suffix}"
        assert predict(run, f"--input={source}", f"--output={target}") == 0
        (row,) = formats.read(str(target), formats.FORMATS[suffix]).rows((), True)
        assert [*row.cells.items()][:4] == [
            ("note", "m"),
            ("text", "ab"),
            ("column_3", "x"),
            ("note_4", "n"),
        ]


def test_a_line_end_is_not_written_as_tsv(run, tmp_path, capsys):
    source = write(tmp_path / "in.csv", 'text\nab\n"c\nd"\n')
    assert predict(run, f"--input={source}", f"--output={tmp_path}/out.tsv") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "input line 3: it has a cell with a line end, which a row of TSV" in said


# F18, F19: labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0", "1", "0.0", "1.0"], ("0", "1")),
        (["1", "01", "+1", "1."], ("01", "1")),
        (["True", "false", "true", "FALSE"], ("false", "true")),
        (["True", "False"], ("False", "True")),  # one spelling is kept
        (["1.0", "2.0"], ("1.0", "2.0")),
        (["nan", "inf"], ("inf", "nan")),
        (["nan", "NaN", "good"], ("NaN", "good", "nan")),
        (["-1", "1"], ("-1", "1")),
        (["1" * 40, "1" * 39 + "2"], ("1" * 40, "1" * 39 + "2")),
    ],
)
def test_f18_classes_of_spellings(tmp_path, labels, classes):
    rows = [(t, labels[i % len(labels)]) for i, t in enumerate(TEXTS)]
    path = write(tmp_path / "a.csv", table(rows))
    assert load(path, validation=path).task.labels == classes


def test_f18_one_class_in_and_across_files(tmp_path, caplog):
    caplog.set_level("INFO")
    mixed = [(t, y if i < 20 else f"{y}.0") for i, (t, y) in enumerate(ROWS)]
    path = write(tmp_path / "mixed.csv", table(mixed))
    splits = load(path, validation=path).splits
    np.testing.assert_array_equal(splits["validation"].label, NUMBERS)
    assert "mixed.csv: the labels 0, 0.0 are one class, 0" in caplog.text
    whole = write(tmp_path / "train.csv", table())
    floats = [(t, f"{y}.0") for t, y in ROWS]
    bools = [(t, y == "1") for t, y in ROWS]
    other = {
        "v.csv": (whole, table(floats)),
        "v.tsv": (whole, table(floats, by="\t")),
        "v.jsonl": (whole, json_lines([(t, float(y)) for t, y in ROWS])),
        "v.parquet": (
            whole,
            columns().set_column(1, "label", [[*map(float, NUMBERS)]]),
        ),
        "b.csv": (write(tmp_path / "bool.jsonl", json_lines(bools)), table(bools)),
        "b.parquet": (
            write(tmp_path / "bools.csv", table(bools)),
            columns().set_column(1, "label", [[y == 1 for y in NUMBERS]]),
        ),
    }
    for name, (train, content) in other.items():
        caplog.clear()
        splits = load(train, validation=write(tmp_path / name, content)).splits
        np.testing.assert_array_equal(splits["validation"].label, NUMBERS)
        read_as = "is read as the class" in caplog.text
        assert read_as == (name not in ("v.jsonl", "v.parquet")), name


def test_f19_half_a_character_is_no_label(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": "\\ud83d"}\n')
    message = r"a.jsonl:1: the label is '\\ud83d'; expected whole characters"
    with pytest.raises(UserError, match=message):
        load(path)


def test_minus_one_is_no_label_in_a_test_file(tmp_path, caplog):
    caplog.set_level("INFO")
    train = write(tmp_path / "train.csv", table())
    hidden = table([(t, "-1") for t in TEXTS])
    files = {
        "t.csv": hidden,
        "t.jsonl": json_lines([(t, -1) for t in TEXTS]),
        "t.parquet": columns().set_column(1, "label", [[-1.0] * 40]),
    }
    for name, content in files.items():
        caplog.clear()
        test = write(tmp_path / name, content)
        splits = load(train, validation=train, test=test).splits
        assert set(splits["test"].label) == {-1}
        assert "40 rows have the label -1, which is read as no label" in caplog.text
    with pytest.raises(
        UserError, match="t.csv:2: unknown label '-1'; expected a class"
    ):
        load(train, validation=str(tmp_path / "t.csv"))
    scores = write(
        tmp_path / "s.csv", table([(t, f"{n}.5") for n, t in enumerate(TEXTS)])
    )
    found = load(scores, validation=scores, test=str(tmp_path / "t.csv")).splits["test"]
    assert np.isnan(found.label).all()
    both = write(tmp_path / "both.csv", table([("a", "-1"), ("b", "2.5")]))
    found = load(scores, validation=scores, test=both).splits["test"]
    np.testing.assert_array_equal(found.label, [-1, 2.5])
    three = [(t, str(i % 3 - 1)) for i, t in enumerate(TEXTS)]
    three = write(tmp_path / "three.csv", table(three))
    assert load(three, validation=three).task.labels == ("-1", "0", "1")
    assert "-1 is a class, like 0, 1; if it means that there is no label" in caplog.text


def test_decimal_commas_are_named(tmp_path):
    rows = [(t, "0,5" if y == "1" else "1") for t, y in ROWS]
    path = write(tmp_path / "a.csv", table(rows, by=";"))
    with pytest.raises(UserError, match="a.csv:3: label '0,5' has a decimal comma"):
        load(path)
    got = load(path, validation=path, task="classification")
    assert got.task.labels == ("0,5", "1")
    names = write(tmp_path / "b.csv", table([(t, f"{y},{y}") for t, y in ROWS[:1]] + [
        (t, "both") for t in TEXTS
    ]))  # fmt: skip
    assert load(names, validation=names).task.labels == ("0,0", "both")


# F20 to F22


def test_f20_a_bad_cell_of_parquet_costs_its_row(tmp_path):
    path = write(tmp_path / "a.parquet", columns().set_column(0, "text", NOTE))
    with pytest.raises(UserError, match="a.parquet:1: column 'text' has byte 0xe9"):
        load(path)
    splits = load(path, validation=path, on_bad_row="skip").splits
    assert len(splits["validation"].ids) == 39


def test_f22_suffixes_that_predict_does_not_know(run, tmp_path, capsys):
    write(tmp_path / "in.parquet", columns())
    write(tmp_path / "in.txt", table())
    for flags, said in (
        (
            ("in.txt", "out.csv"),
            "in.txt ends in '.txt'; expected one of .jsonl, .ndjson",
        ),
        (("in.csv.gz", "out.csv"), "ends in '.gz'; expected one of .jsonl"),
        (("in.parquet", "out.parquet"), "out.parquet ends in '.parquet'; expected one"),
        (("in.parquet", "out.xlsx"), "out.xlsx ends in '.xlsx'; expected one of"),
    ):
        paths = [str(tmp_path / name) for name in flags]
        assert predict(run, f"--input={paths[0]}", f"--output={paths[1]}") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / flags[1]).exists()
    flags = [f"--input={tmp_path}/in.txt", f"--output={tmp_path}/out.csv"]
    assert predict(run, *flags, "--format=csv") == 0
    assert texts_of_predict(f"{tmp_path}/out.csv") == TEXTS
    flags = [f"--input={tmp_path}/in.parquet", f"--output={tmp_path}/out.jsonl"]
    assert predict(run, *flags) == 0
    assert texts_of_predict(f"{tmp_path}/out.jsonl") == TEXTS


def test_nan_in_a_cell_leaves_as_null(run, tmp_path):
    line = '{"text": "ab", "x": NaN, "y": [1e999], "z": {"n": -Infinity}}\n'
    source, target = write(tmp_path / "in.jsonl", line), tmp_path / "out.jsonl"
    assert predict(run, f"--input={source}", f"--output={target}") == 0

    def refuse(name):
        raise AssertionError(name)

    got = json.loads(target.read_text(), parse_constant=refuse)
    assert (got["x"], got["y"], got["z"]) == (None, [None], {"n": None})


# A changed data file


def warnings(caplog):
    return [record for record in caplog.records if record.levelname == "WARNING"]


def test_changed_data_is_noticed_when_a_run_goes_on(tmp_path, caplog):
    train = write(tmp_path / "train.csv", table())
    own = write(tmp_path / "own.csv", table())
    data = {"source": "files", "train": train, "validation": own}
    settings = step_zero.settings(data={**data, "max_length": 32})

    def session():
        corpus = session_lib.load_corpus(settings)
        opened = session_lib.open_session(settings, corpus.task)
        return session_lib.with_data(opened, corpus)

    folder = Run.create(tmp_path / "run")
    continuation.check_or_begin(folder, session(), None)
    record = records.read_record(folder)
    continuation.check_or_begin(folder, session(), record)
    (folder.checkpoints / "1").mkdir(parents=True)
    files.write_json(folder.summary_file, {})
    assert continuation.read(settings, folder)[2] == {} and not warnings(caplog)
    write(tmp_path / "own.csv", table([*ROWS[:-1], (TEXTS[-1], "0")]))  # one label
    message = "the data has changed since .*run was started .other texts or labels in "
    with pytest.raises(UserError, match=message + "validation"):
        continuation.check_or_begin(folder, session(), record)
    assert continuation.read(settings, folder)[2] == {}
    assert "data has changed since" in caplog.text and "in validation" in caplog.text
    record.pop(records.DIGESTS)  # an older run goes on as before
    continuation.check_or_begin(folder, session(), record)
    caplog.clear()
    (tmp_path / "own.csv").unlink()  # a finished run needs its data no more
    assert continuation.read(settings, folder)[2] == {} and not warnings(caplog)
