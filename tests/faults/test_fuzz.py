"""Mutated inputs from outside end in a right answer or in one line, and soon.

`make test` takes the same 300 changes of good inputs each time, `make soak` takes
10,000 random ones. Most go through the readers that the commands call, some through
whole commands, and in soak some through commands in processes of their own.
"""

import asyncio
import contextlib
import io
import json
import shutil
import warnings
import zipfile

import fuzzing
import numpy as np
import process
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import task_sets
from fastapi.exceptions import RequestValidationError
from fuzzing import Change, edited, stepped
from parity import golden
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from hypelora_jax import cli
from hypelora_jax.config import loading, ranges
from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import formats, npz, sources
from hypelora_jax.data.sources.bad_rows import BadRows
from hypelora_jax.data.sources.raw_rows import read_raw
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.exchange import imports
from hypelora_jax.inference import inputs
from hypelora_jax.interop import adapter, base, huggingface, peft, tensors
from hypelora_jax.run import prediction_files
from hypelora_jax.serve import failures, schemas

GOOD = Change(0, [], [])
BASE, ADAPTER = golden.ROOT / "base", golden.ROOT / "peft_adapter"
ENDS = {"csv": ",", "tsv": "\t", "jsonl": ""}
ROWS = [
    {"text": f"a {'fine' if i % 2 else 'dull'} one {i}", "label": i % 2}
    for i in range(8)
]
PREDICTED = [
    {"label": i % 2, "prob_0": 0.25, "prob_1": 0.75, "id": f"row {i}"}
    for i in range(24)
]


def write(folder, name, data, change):
    """Write a file of its own for an input, and return its path."""
    path = folder / name
    path.write_bytes(stepped(data, change.steps))
    return path


def lines(rows, delimiter):
    """Rows as JSON lines, or as a table if there is a delimiter; cells may be odd."""
    if not delimiter:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    text = "\n".join(delimiter.join(map(str, row)) for row in table) + "\n"
    return text.encode("utf-8", "surrogatepass")


def odd_rows(rows, change):
    """The rows that are still objects after the edits."""
    found = edited(rows, change.edits)
    kept = [x for x in found if isinstance(x, dict)] if isinstance(found, list) else []
    return kept or rows


# Tables of texts, as train and predict read them

COLUMNS = (
    lambda n: pa.array([{"x": 1}] * n),
    lambda n: pa.array([[1, None]] * n),
    lambda n: pa.array([None] * n),
    lambda n: pa.array([b"\xff"] * n),
    lambda n: pa.array(["a", None] * (n // 2)).dictionary_encode(),
    lambda n: pa.array([2**63] * n, pa.uint64()),
    lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array([0] * n, pa.timestamp("ns")),
    lambda n: pa.array([2**62] * n, pa.timestamp("us")),
    lambda n: pa.array([2**62] * n, pa.duration("s")),
    lambda n: pa.array([True] * n),
    lambda n: pa.array([0] * n, pa.date64()),
    lambda n: pa.array([1] * n, pa.decimal128(30, 3)),
    lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
    lambda n: pa.array([0.5] * n, pa.float16()),
    lambda n: pa.array(["a"] * n, pa.string_view()),
)


def parquet(change):
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    found = pa.table(columns)
    for edit in change.edits:
        at = edit.at % 3
        odd = COLUMNS[edit.at // 3 % len(COLUMNS)](len(ROWS))
        name = ("text", "label", "more")[at]
        found = (
            found.append_column(name, odd)
            if at == 2
            else found.set_column(at, name, odd)
        )
    buffer = io.BytesIO()
    pq.write_table(found, buffer)
    return buffer.getvalue()


def read_texts(path):
    """Texts of a file as train and as predict read them, which are the same."""
    config = DataConfig(source="files", train=str(path))
    splits = sources.load(config, seed=0).splits
    trained = read_raw(str(path), config, "test", BadRows("error")).text
    assert sum(len(table.ids) for table in splits.values()) == len(trained)
    sheet = formats.read(str(path), formats.format_of(str(path)))
    columns = inputs.names(False, "", "", ("", ""))
    predicted = list(inputs.read(sheet, columns)[1])
    for one in predicted:
        if not isinstance(one, inputs.Example):
            raise UserError(f"{path}:{one.line}: {one.what}")
    return trained, [one.texts[0] for one in predicted]


def table(change, folder):
    end = list(ENDS)[change.pick % 3]
    data = lines(odd_rows(ROWS, change), ENDS[end])
    trained, predicted = read_texts(write(folder, f"in.{end}", data, change))
    assert trained == predicted


def parquet_table(change, folder):
    trained, predicted = read_texts(
        write(folder, "in.parquet", parquet(change), change)
    )
    assert trained == predicted


# Predictions and arrays


def json_predictions():
    return [
        {"label": row["label"], "probs": [row["prob_0"], row["prob_1"]]}
        for row in PREDICTED
    ]


def archive(change):
    """An .npz whose arrays are odd, or the bytes of whose members are changed."""
    good = {
        "logits": np.linspace(-1, 1, 16).reshape(8, 2),
        "labels": np.arange(8) % 2,
        "ids": np.array([f"row {i}" for i in range(8)]),
        "soft": np.full((8, 2), 0.5),
    }
    arrays, names = dict(good), list(good)
    for edit in change.edits:
        name = names[edit.at % len(names)]
        x = good[name]
        odd = (
            np.array([None, {}], object),
            x.astype("S3"),
            x[:5],
            x.T,
            np.full(x.shape, np.nan),
            np.full(x.shape, 2**63, np.uint64),
            np.zeros(x.shape, [("x", "i4")]),
            np.zeros(x.shape, "M8[s]"),
            np.zeros(x.shape, np.complex64),
            np.zeros((0, 2)),
        )
        arrays[name] = odd[edit.at // 8 % len(odd)]
    inside = change.pick % 2  # the bytes of the members, with right sums of them
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, x in arrays.items():
            member = io.BytesIO()
            np.save(member, x, allow_pickle=True)
            data = member.getvalue()
            data = stepped(data[:128], change.steps) + data[128:] if inside else data
            out.writestr(f"{name}.npy", data)
    data = buffer.getvalue()
    return data if inside else stepped(data, change.steps)


def predictions_file(change, folder):
    kind = change.pick // 2 % 4
    if kind == 3:
        path = folder / "in.npz"
        path.write_bytes(archive(change))
        return path
    end = list(ENDS)[kind]
    rows = PREDICTED if ENDS[end] else json_predictions()
    return write(folder, f"in.{end}", lines(odd_rows(rows, change), ENDS[end]), change)


def predictions(change, folder):
    found = prediction_files.contents(predictions_file(change, folder))
    assert np.allclose(found.probs.sum(axis=1), 1, atol=1e-3)
    assert (
        found.labels.dtype == np.int64 and found.labels.shape == found.probs.shape[:1]
    )
    assert (found.labels < found.probs.shape[1]).all() and (found.labels >= -1).all()


def arrays(change, folder):
    path = folder / "arrays.npz"
    path.write_bytes(archive(change))
    assert all(x.dtype != object for x in npz.read(path).values())


# Adapters, base models and their tokenizers


def tensor_file(path, change):
    """The tensors of a file with an odd header, or with other bytes."""
    found = safetensors.numpy.load_file(path)
    data = safetensors.numpy.save(found)
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(edited(json.loads(data[8 : 8 + size]), change.edits)).encode()
    if change.pick % 3 == 0:
        header = stepped(header, change.steps)
    data = len(header).to_bytes(8, "little") + header + data[8 + size :]
    return stepped(data, change.steps) if change.pick % 3 == 1 else data


def json_file(path, change):
    value = edited(json.loads(path.read_text()), change.edits)
    return stepped(json.dumps(value).encode(), change.steps)


@contextlib.contextmanager
def copied(source, name, data):
    """The folder of a model with another file in it, whose files stay as they are."""
    before = (source / name).read_bytes()
    (source / name).write_bytes(data)
    try:
        files_before = fuzzing.contents(source)
        yield source
        assert fuzzing.contents(source) == files_before
    finally:
        (source / name).write_bytes(before)


def copy_of(source, folder):
    if not (folder / source.name).exists():
        shutil.copytree(source, folder / source.name)
    return folder / source.name


def adapter_change(change):
    """(file to change, its data) of an adapter."""
    if change.pick % 2:
        return peft.CONFIG, json_file(ADAPTER / peft.CONFIG, change)
    return peft.TENSORS, tensor_file(ADAPTER / peft.TENSORS, change)


CONFIG = huggingface.load_config(BASE)


def adapters(change, folder):
    with copied(copy_of(ADAPTER, folder), *adapter_change(change)) as path:
        fields, found = peft.read(path)
        got = adapter.from_peft(CONFIG, fields, found)
        assert all(
            np.isfinite(x).all() for m in got.factors.values() for x in m.values()
        )


def base_models(change, folder):
    name = (
        tensors.MODEL_CONFIG,
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    )[change.pick % 4]
    with copied(copy_of(BASE, folder), name, json_file(BASE / name, change)) as path:
        found = base.resolve(str(path))
        words = base.read_tokenizer(found)
        texts = ["a fine one", "", "é <s> \U0001f600 " * 20]
        one = Table(np.arange(3), texts, None, np.zeros(3, np.int32))
        ids = words.encode(one, 16).ids
        assert all(0 <= i < found.config.vocab for row in ids for i in row)
        assert all(len(row) <= 16 for row in ids)


def weights(change, folder):
    data = tensor_file(BASE / tensors.SINGLE, change)
    with copied(copy_of(BASE, folder), tensors.SINGLE, data) as path:
        huggingface.from_hf(CONFIG, tensors.read_tensors(path), 2)


# Configs, requests and command lines

FIELDS = {
    "optim.lr": "1e-3",
    "method": "lora",
    "data.classes": "('a', 'b')",
    "lora.layers": "(0, 1)",
    "lora.targets": "query",
    "lora.rslora": "true",
    "data.max_length": "32",
    "seed": "3",
}


def flags(change, prefix, fields):
    """Flags of some fields, and steps on one of them, as a shell can pass them."""
    found = edited(fields, change.edits)
    found = found if isinstance(found, dict) else {str(found)[:9]: found}
    found = [f"--{prefix}{name}={value}" for name, value in found.items()]
    if found and change.steps:
        at = change.pick % len(found)
        found[at] = stepped(found[at].encode("utf-8", "replace"), change.steps).decode(
            "utf-8", "replace"
        )
    return [word.encode("utf-8", "replace").decode() for word in found]


def configs(change, folder):
    loading.load_settings("smoke", flags(change, "config.", FIELDS))


QUESTIONS = [{"text": "a fine one", "text_b": None}, {"text": "b", "condition": [0.5]}]


def bodies(change, folder):
    validated(QUESTIONS, schemas.Questions, "/predict", change)


def loads(change, folder):
    good = {"lora_name": "a", "lora_path": "b/c", "load_inplace": True}
    validated(good, schemas.LoadAdapter, "/v1/load_lora_adapter", change)


def validated(good, schema, path, change):
    """Read a changed body as the service does that gets it at a path."""
    body = stepped(json.dumps(edited(good, change.edits)).encode(), change.steps)
    try:
        given = schemas.parsed(body, failures.wanted(path))
        TypeAdapter(schema).validate_python(given)
    except failures.Refusal as e:
        assert e.status_code in (400, 422)
        raise UserError(e.detail) from None
    except ValidationError as e:
        refused = RequestValidationError(e.errors())
        asked = Request({"type": "http", "path": path, "headers": []})
        answer = asyncio.run(failures.HANDLERS[RequestValidationError](asked, refused))
        raise UserError(json.loads(answer.body)["error"]) from None


# Whole commands


def metrics(change, folder):
    return ["metrics", f"--predictions={predictions_file(change, folder)}"]


def calibrate(change, folder):
    good = folder / "good.csv"
    good.write_bytes(lines(PREDICTED, ","))
    path = predictions_file(change, folder)
    out = f"--output={folder / 'out' / path.name}"
    (folder / "out").mkdir()
    return ["calibrate", f"--predictions={good}", f"--apply={path}", out]


def imported(change, folder):
    path = folder / "peft_adapter"
    shutil.copytree(ADAPTER, path)
    name, data = adapter_change(change)
    (path / name).write_bytes(data)
    out = f"--workdir={folder / 'out'}"
    return ["import", f"--adapter={path}", f"--model={BASE}", out]


def train(change, folder):
    given = [*flags(change, "config.", FIELDS), "--config.data.source=nothing"]
    return ["train", "--config=smoke", f"--workdir={folder / 'out'}", *given]


def words(change, folder):
    fields = {"predictions": folder / "nothing.csv", "replicas": 3, "bins": 5}
    return ["metrics", *flags(change, "", {k: str(x) for k, x in fields.items()})]


COMMANDS = (metrics, calibrate, imported, train, words)


def given(change, folder):
    """The arguments of a command in a new folder; it may write only to `out`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    argv = COMMANDS[change.pick // 16 % len(COMMANDS)](change, folder)
    return [arg.replace("\x00", "?") for arg in argv]  # no shell passes NUL bytes


def check_ended(folder, before, code, told):
    """Check how a command ended, and that it left no half of a file."""
    assert code in (0, 1, 2), told
    assert "Traceback" not in told and "internal error" not in told, told
    after = fuzzing.contents(folder)
    made = after.keys() - before.keys()
    assert all(after[name] == data for name, data in before.items())
    assert all(name.startswith("out/") for name in made), made
    assert not made or code != 2, f"{made} are left"
    if code == 2:
        raise UserError(told.splitlines()[-1] if told else "")


def in_process(change, folder):
    argv = given(change, folder / "in_process")
    before, err = fuzzing.contents(folder / "in_process"), io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            code = cli.main(argv)
        except SystemExit as e:  # of --help and --version
            code = e.code or 0
    check_ended(folder / "in_process", before, code, err.getvalue())


def own_process(change, folder):
    argv = given(change, folder / "own_process")
    before = fuzzing.contents(folder / "own_process")
    done = process.run(*argv)
    check_ended(folder / "own_process", before, done.returncode, done.stderr)


def task_set(change, folder):
    task_sets.read_changed(change, folder)


# How many of each: name -> (in make test, in make soak)
SHARES = {
    table: (35, 1150),
    parquet_table: (25, 900),
    predictions: (35, 1250),
    arrays: (25, 900),
    task_set: (20, 500),
    adapters: (35, 1400),
    base_models: (35, 1100),
    weights: (20, 800),
    configs: (30, 900),
    bodies: (20, 500),
    loads: (10, 200),
    in_process: (10, 200),
    own_process: (0, 200),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def test_there_are_enough_examples():
    short, long = (sum(share) for share in zip(*SHARES.values(), strict=True))
    assert short == 300 and long == 10_000
    assert SHARES[in_process][0] >= 0.02 * short
    assert SHARES[own_process][1] >= 200


READERS = [f for f in SHARES if f not in (in_process, own_process)]


@pytest.mark.parametrize("subject", READERS)
@pytest.mark.parametrize("pick", range(8))
def test_a_good_input_is_read(subject, pick, folder):
    assert not fuzzing.judged(subject, GOOD._replace(pick=pick), folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_good_command_does_its_work(name, folder):
    change = GOOD._replace(pick=16 * COMMANDS.index(name))
    assert fuzzing.judged(in_process, change, folder) == (name in (train, words))


def run(subject, folder, count, fixed):
    counts = fuzzing.run(subject, folder, count, fixed)
    print(f"{subject.__name__}: {counts}")
    assert counts["examples"] >= count
    assert 0 < counts["refused"] < counts["examples"]


@pytest.mark.parametrize("subject", [s for s, (short, _) in SHARES.items() if short])
def test_mutated_inputs_end_well(subject, folder):
    run(subject, folder, SHARES[subject][0], fixed=True)


@pytest.mark.soak
@pytest.mark.parametrize("subject", SHARES)
def test_10_000_mutated_inputs_end_well(subject, folder):
    run(subject, folder, SHARES[subject][1], fixed=False)


# What it found


def refused(message, work):
    with pytest.raises(UserError, match=message) as caught:
        work()
    assert "\n" not in str(caught.value)


def test_utf_32_with_numbers_that_are_no_characters(tmp_path):
    data = lines(ROWS, ",").decode().encode("utf-32")
    path = tmp_path / "in.csv"
    path.write_bytes(data[:30] + data[32:])
    refused("in.csv has bytes that are not text in UTF-32", lambda: read_texts(path))


def test_factors_of_the_reference_have_the_same_reader(tmp_path):
    path = npz_of(tmp_path / "in.npz", "A.npy", b"\x93NUMPY\x01\x00\x05\x00{'a':")
    refused(
        "in.npz is not a readable .npz file", lambda: imports._extra_factors(str(path))
    )


def npz_of(path, name, data):
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(name, data)
    return path


def test_npz_whose_header_is_not_closed(tmp_path):
    member = io.BytesIO()
    np.save(member, np.zeros(3))
    data = member.getvalue().replace(b"}", b" ")
    path = npz_of(tmp_path / "in.npz", "labels.npy", data)
    refused("in.npz is not a readable .npz file", lambda: npz.read(path))


def test_npz_with_a_member_that_is_no_array(tmp_path):
    path = npz_of(tmp_path / "in.npz", "labels", b"0 1 0 1")
    refused("in.npz has 'labels', which is not an array", lambda: npz.read(path))


def test_line_ends_in_names_do_not_end_the_message(tmp_path):
    path = tmp_path / "adapter"
    shutil.copytree(ADAPTER, path)
    values = json.loads((path / peft.CONFIG).read_text()) | {"a\nb": True}
    (path / peft.CONFIG).write_text(json.dumps(values))
    refused("has a b=true; expected plain LoRA", lambda: peft.read(path))


def test_a_regex_that_a_later_python_reads_otherwise():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a command, which would print it
        refused("Possible nested set", lambda: ranges.regex("x", "[[a]"))


@pytest.mark.parametrize(
    "given",
    [
        ["seed=3"],
        [
            "--config.seed=3",
            "-" + "x" * 5000,
        ],  # absl looks for a flag like it, by recursion
        ["--config.lora.rslora", "false"],  # which would be true
    ],
)
def test_a_word_among_overrides_is_not_passed_over(given):
    refused("among the overrides", lambda: loading.load_config("smoke", given))
