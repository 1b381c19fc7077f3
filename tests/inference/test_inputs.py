"""Reading rows: what is one, what is none, and that one bad line costs one line."""

import io
import json
import os
import random
import time
from threading import Thread

import pytest

from hypelora_jax.data import formats
from hypelora_jax.data.formats import FORMATS
from hypelora_jax.data.formats.sheet import Bad
from hypelora_jax.errors import UserError
from hypelora_jax.inference import inputs, writers
from hypelora_jax.inference.inputs import Example, Names

ONE = Names(("text", "sentence"))
PAIR = Names(("text",), ("text_b",))


def read(tmp_path, data: bytes, kind="jsonl", wanted=ONE):
    path = tmp_path / "in"
    path.write_bytes(data)
    header, found = inputs.read(formats.read(str(path), FORMATS[kind]), wanted)
    return header, list(found)


def texts(found):
    return [row.texts[0] for row in found if isinstance(row, Example)]


def bad(found):
    return [(row.line, row.what) for row in found if isinstance(row, Bad)]


def test_json_lines_with_blank_lines_a_mark_and_no_last_newline(tmp_path):
    data = '\ufeff{"text": "ü", "n": [1]}\n\n  \r\n{"sentence": "\u2028b"}'.encode()
    header, found = read(tmp_path, data)
    assert header is None and bad(found) == []
    assert [(r.line, r.texts, r.read) for r in found] == [
        (1, ("ü",), 28),
        (4, ("\u2028b",), len(data)),
    ]
    assert found[0].cells == {"text": "ü", "n": [1]}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a JSON list; expected one object"),
        (b'"text"', "a JSON str; expected one object"),
        (b"[" * 200_000, "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{\x00", "not UTF-8"),
        (b'{"texts": "a"}', "'text' is None; expected a text"),
        (b'{"text": " "}', "'text' is ' '; expected a text that is not empty"),
        (b'{"text": ["a"]}', "'text' is ['a']; expected a text"),
        (b'{"text": "\\ud800"}', "'text' is '\\ud800'; it is not Unicode"),
        (b'{"n": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_json_that_is_no_example(tmp_path, line, what):
    _, found = read(tmp_path, b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    assert texts(found) == ["a", "b"]
    ((number, said),) = bad(found)
    assert number == 2 and what in said


def test_pairs_need_both_texts(tmp_path):
    data = b'{"text": "a", "text_b": "b"}\n{"text": "a"}\n'
    _, found = read(tmp_path, data, wanted=PAIR)
    assert found[0].texts == ("a", "b") and "'text_b' is None" in found[1].what


def test_csv_with_quotes_new_lines_a_mark_and_crlf(tmp_path):
    data = '\ufefftext,n\r\n"a ""b"",\nc\n\nd",1\r\n\r\n e ,2'.encode()
    header, found = read(tmp_path, data, "csv")
    assert header == ["text", "n"] and bad(found) == []
    assert [(r.line, r.cells) for r in found] == [
        (2, {"text": 'a "b",\nc\n\nd', "n": "1"}),
        (7, {"text": " e ", "n": "2"}),
    ]
    assert found[-1].read == len(data)


def test_tsv_names_columns_and_keeps_commas(tmp_path):
    header, found = read(tmp_path, b"id\tsentence\n7\ta, b\n", "tsv")
    assert header == ["id", "sentence"] and found[0].texts == ("a, b",)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'"never closed,1', "opened and not closed|expected after"),
        (b'"a"b,1', "expected after"),
        (b"a,1,2", "3 fields; expected 2 as in the header"),
        (b"alone", "1 fields; expected 2"),
        (b"\xff,1", "not UTF-8"),
        (b'"",1', "'text' is ''; expected a text that is not empty"),
        (b'"two\nlines', ""),  # both are named
    ],
)
def test_a_bad_csv_line_costs_no_other(tmp_path, line, what):
    good = b'text,n\na,1\n"b, ""b""",2\n'
    _, found = read(tmp_path, good + line + b'\nc,3\n"d\nd",4\ne,5\n', "csv")
    assert texts(found) == ["a", 'b, "b"', "c", "d\nd", "e"]
    assert [n for n, _ in bad(found)][0] == 4
    if len(bad(found)) == 1:
        assert any(part in bad(found)[0][1] for part in what.split("|"))


def test_random_garbage_among_rows_loses_no_row(tmp_path):
    """Every good row comes back, with its line, whatever bytes stand between."""
    draw = random.Random(0)
    for kind, mark in (("csv", ","), ("tsv", "\t"), ("jsonl", "")):
        data, wanted, at = b"", [], 1
        if mark:
            data, at = f"text{mark}n\n".encode(), 2
        for n in range(3000):
            if draw.random() < 0.01:
                junk = bytes(draw.choice(b'"ab{\xff\x80:') for _ in range(12))
                data, at = data + junk + b"\n", at + 1
                continue
            text = f'row {n} with "quotes"{mark} and more'
            one = f'"{text.replace(chr(34), 2 * chr(34))}"{mark}{n}'
            line = one if mark else json.dumps({"text": text, "n": n})
            data, wanted = data + line.encode() + b"\n", [*wanted, (at, text)]
            at += 1
        _, found = read(tmp_path, data, kind)
        assert [(r.line, r.texts[0]) for r in found if isinstance(r, Example)] == wanted
        assert len(bad(found)) == at - 1 - bool(mark) - len(wanted) > 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"id,label\n1,a\n", "has no column text or sentence; it has id, label. Name"),
        (b"text,n,text\n", "two columns 'text'"),
        (b'"text\n', "in:1: a quote is opened and not closed"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, data, "csv")
    assert read(tmp_path, b"", "csv") == (None, [])


def test_names_asked_for_come_before_those_of_training():
    found = inputs.names(True, "a", "", ("review", "other"))
    assert found.text == ("a",) and found.text_b[:2] == ("other", "text_b")
    assert inputs.names(False, "", "", ("review", ""))[0][:2] == ("review", "text")
    assert inputs.names(False, "", "", ("", "")).text_b == ()
    with pytest.raises(UserError, match="--text_b=b names a second text"):
        inputs.names(False, "", "b", ("", ""))


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("jsonl", b'{"text": "a"}\n{"te', b'xt": "b"}\n'),
        ("csv", b"text\na\n", b"b\n"),
        ("csv", b"text\ra\r", b"b\r"),
        ("tsv", b'n\ttext\r\n"1\ta\r\n', b'"2\tb\r\n'),
    ],
)
def test_a_slow_pipe_pauses_and_a_file_does_not(monkeypatch, kind, first, second):
    end, start = os.pipe()

    def feed():
        with os.fdopen(start, "wb") as file:
            file.write(first)
            file.flush()
            time.sleep(0.5)
            file.write(second)

    thread = Thread(target=feed)
    with os.fdopen(end, "rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        thread.start()
        _, found = inputs.read(formats.read("-", FORMATS[kind]), ONE)
        found = [row if row is None else row.texts[0] for row in found]
    thread.join()
    assert found == ["a", None, "b"]


def test_cells_with_a_name_of_the_answer_are_renamed():
    cells = {"label": 1, "input_label": 2, "x": 3}
    out = writers.joined(cells, {"label": "yes"})
    assert out == {"input_input_label": 1, "input_label": 2, "x": 3, "label": "yes"}
    assert list(writers.joined({"a": 1}, {"label": 2})) == ["a", "label"]
