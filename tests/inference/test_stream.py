"""`hypelora predict` on small runs: formats, order, bad lines, what is kept."""

import csv
import io
import json
import random

import numpy as np
import pytest
import step_zero

from hypelora_jax import cli
from hypelora_jax.data import npz
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate import fitted as fitted_lib
from hypelora_jax.inference import predictor, stream

pytestmark = pytest.mark.usefixtures("load_once")

TEXTS = ["ab", "a longer text", 'with "quotes", and\nlines', "x" * 60, "ü", "a\u2028b"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    return step_zero.run_folder(path, "mlp", "binary", temperature=1.7)


@pytest.fixture(scope="module")
def model(run):
    return as_the_command_loads(run)


def as_the_command_loads(run):
    return predictor.load(str(run), None, "thr", False, None)


def many(n):
    draw = random.Random(1)
    return [
        "".join(draw.choices("abc ", k=draw.randint(2, 40))) + "." for _ in range(n)
    ]


def predict(run, *flags):
    return cli.main(["predict", f"--workdir={run}", *flags])


def as_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"--input={path}"


def as_table(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return f"--input={path}"


def read_table(text, delimiter=","):
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def test_three_formats_give_the_answers_of_the_api(run, model, tmp_path, capsys):
    wanted = model.predict(TEXTS)
    rows = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    assert predict(run, as_jsonl(tmp_path / "in.jsonl", rows)) == 0
    got = [json.loads(x) for x in capsys.readouterr().out.split("\n")[:-1]]
    assert got == [row | one for row, one in zip(rows, wanted, strict=True)]
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        if kind == "tsv":  # where a row is one line
            rows = [row for row in rows if "\n" not in row["text"]]
            wanted = model.predict([row["text"] for row in rows])
        flag = as_table(tmp_path / f"in.{kind}", rows, delimiter)
        assert predict(run, flag) == 0
        found = read_table(capsys.readouterr().out, delimiter)
        names = ["id", "text", "label", "confidence", "prob_no", "prob_yes"]
        assert list(found[0]) == names
        for row, cells, one in zip(rows, found, wanted, strict=True):
            assert {n: cells[n] for n in row} == row and cells["label"] == one["label"]
            assert float(cells["confidence"]) == one["confidence"]
            assert float(cells["prob_yes"]) == one["probs"]["yes"]


def test_formats_are_turned_into_each_other(run, tmp_path, capsys, monkeypatch):
    rows = [{"text": "ab", "n": [1, None], "ok": True}, {"text": "cd"}]
    flag, out = as_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.tsv"
    assert predict(run, flag, f"--output={out}") == 0
    first, second = read_table(out.read_text(), "\t")
    assert first["n"] == "[1, null]" and first["ok"] == "true" and second["n"] == ""
    assert predict(run, f"--input={out}", "--format=jsonl") == 0
    again = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert again[0]["input_label"] == first["label"] == again[0]["label"]
    with out.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert predict(run, "--format=tsv") == 0
    header, *_ = capsys.readouterr().out.splitlines()
    assert header.split("\t")[:4] == ["text", "n", "ok", "input_label"]


def test_predict_gives_the_numbers_of_evaluate(run, model, tmp_path):
    """Of logits that `evaluate` writes: a whole split at once, its own buckets."""
    texts = many(300)
    label = np.zeros(len(texts), np.int32)
    fitted = evaluation.open_fitted(str(run))
    data = fitted_lib.tokenised(fitted, Table(np.arange(300), texts, None, label))
    evaluation.write_split(fitted, "validation", data, fitted.answer(data))
    file = run / "eval/validation/predictions.npz"
    z = npz.read(file)["logits"].astype(np.float64) / 1.7
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    got = [list(one["probs"].values()) for one in model.predict(texts)]
    np.testing.assert_allclose(got, p, rtol=0, atol=1e-12)


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="is 'xml'; expected one of jsonl, csv, tsv"):
        stream.formats(stream.Stream(format="xml"))
    table, lines = stream.formats(stream.Stream("a.CSV", "b.ndjson"))
    assert table.delimiter == "," and not lines.is_table


def test_order_is_kept_whatever_the_windows(run, model, tmp_path, monkeypatch):
    texts, out = many(500), tmp_path / "out.jsonl"
    flag = as_jsonl(tmp_path / "in.jsonl", [{"text": t} for t in texts])
    assert predict(run, flag, f"--output={out}") == 0
    got = [json.loads(x) for x in out.read_text().splitlines()]
    assert [row.pop("text") for row in got] == texts
    assert got == model.predict(texts)
    monkeypatch.setattr(stream, "WINDOW", 8)
    monkeypatch.setattr(stream, "FIRST", 3)
    before = out.read_text()
    assert predict(run, flag, f"--output={out}") == 0 and out.read_text() == before


def test_one_percent_of_garbage_is_skipped_and_named(run, model, tmp_path, capsys):
    draw, texts, data = random.Random(2), many(1000), []
    for n, text in enumerate(texts):
        data.append(json.dumps({"text": text, "n": n}).encode())
        if n % 100 == 50:
            data.append(bytes(draw.choice(b'"{a\xff\x80') for _ in range(20)))
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(data) + b"\n")
    assert predict(run, f"--input={path}", "--on-error=skip") == 0
    out, err = capsys.readouterr()
    rows = [json.loads(x) for x in out.splitlines()]
    assert [row["n"] for row in rows] == list(range(1000))
    wanted = model.predict(texts)
    assert [row["probs"] for row in rows] == [one["probs"] for one in wanted]
    assert err.count("skipped input line ") == 10 and "skipped input line 52: " in err
    assert "skipped 10 of 1010 lines" in err


def test_a_bad_line_is_fatal_and_what_is_answered_is_kept(run, tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("text\nab\n\n,\ncd\n")
    out.write_text("old")
    assert predict(run, f"--input={path}", f"--output={out}") == 2
    err = capsys.readouterr().err.splitlines()
    assert (
        err[-1].endswith("out with --on-error=skip")
        and "input line 4: the row has 2 fi" in err[-1]
    )
    assert out.read_text() == "old" and f"so far are in {out}.part" in err[-2]
    assert [
        row["text"] for row in read_table(tmp_path.joinpath("out.csv.part").read_text())
    ] == ["ab"]
    assert predict(run, f"--input={path}", f"--output={out}", "--on-error=skip") == 0
    assert [row["text"] for row in read_table(out.read_text())] == ["ab", "cd"]
    assert not list(tmp_path.glob("*.part"))


def test_a_key_the_header_lacks_is_a_bad_line(run, tmp_path, capsys):
    rows = [{"text": "ab"}] * 64 + [{"text": "cd", "new": 1}, {"text": "ef"}]
    flag = as_jsonl(tmp_path / "in.jsonl", rows)
    assert predict(run, flag, f"--output={tmp_path}/out.csv") == 2
    assert "input line 65: it has 'new', which is not" in capsys.readouterr().err
    out = tmp_path / "out.csv"
    assert predict(run, flag, f"--output={out}", "--on-error=skip") == 0
    assert len(read_table(out.read_text())) == 65
    assert "skipped 1 of 66 lines" in capsys.readouterr().err


def test_half_a_character_in_another_cell(run, tmp_path, capsys):
    flag = as_jsonl(tmp_path / "in.jsonl", [{"text": "ab", "x": "\ud800"}])
    assert predict(run, flag) == 0
    assert json.loads(capsys.readouterr().out)["x"] == "\ud800"
    assert predict(run, flag, "--on-error=skip", f"--output={tmp_path}/out.csv") == 0
    assert "line 1: it has a cell that is not Unicode" in capsys.readouterr().err


def test_cut_texts_are_counted_in_one_line(run, tmp_path, capsys):
    flag = as_jsonl(tmp_path / "in.jsonl", [{"text": "a" * n} for n in (3, 90, 300)])
    assert predict(run, flag, "--output=/dev/null") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "cut 2 of 3 texts to 32 tokens (data.max_length)"


def test_abstention_gives_no_label(run, model, tmp_path, capsys):
    plain = model.predict(many(40))
    middle = sorted(one["confidence"] for one in plain)[20]  # one is just as sure
    flag = as_table(tmp_path / "in.csv", [{"text": t} for t in many(40)])
    assert predict(run, flag, f"--abstain={middle}") == 0
    out, err = capsys.readouterr()
    for one, row in zip(plain, read_table(out), strict=True):
        sure = one["confidence"] >= middle
        assert row["label"] == (one["label"] if sure else "")
        assert row["abstained"] == ("false" if sure else "true")
    assert "20 of 40 texts got no label" in err
    assert predict(run, flag, "--abstain=2") == 2
    assert "abstain is 2; expected above 0 and at most 1" in capsys.readouterr().err


def test_pairs_and_numbers(tmp_path, capsys):
    run = step_zero.run_folder(tmp_path / "run", "lora", "regression")
    flag = as_table(tmp_path / "in.csv", [{"q": "ab", "sentence2": "cd", "label": "3"}])
    assert predict(run, flag) == 2
    assert "no column text or sentence" in capsys.readouterr().err
    assert predict(run, flag, "--text=q") == 0
    (row,) = read_table(capsys.readouterr().out)
    (wanted,) = as_the_command_loads(run).predict([("ab", "cd")])
    assert list(row) == ["q", "sentence2", "input_label", "label", "score"]
    assert float(row["score"]) == float(row["label"]) == wanted["score"]
    assert row["input_label"] == "3"
    assert predict(run, flag, "--text=q", "--abstain=0.5") == 2
    assert "this run predicts a number" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_is_shown_on_a_terminal_only(run, tmp_path, monkeypatch):
    flag = as_jsonl(tmp_path / "in.jsonl", [{"text": "ab"}] * 3)
    for out, shown in ((io.StringIO(), True), (Terminal(), False)):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", terminal)
        assert predict(run, flag) == 0
        assert len(out.getvalue().splitlines()) == 3
        said = terminal.getvalue()
        assert ("3 lines" in said and "100%" in said) == shown and bool(said) == shown
