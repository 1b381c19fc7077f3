import logging

import numpy as np
import pytest
from etils import epath

from hypelora_jax.calibration import metrics
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import file_metrics
from hypelora_jax.run import prediction_files, predictions

PROBS = np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]])
LABELS = np.array([0, 1, 1])


def _write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _npz(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return tmp_path / "x.npz"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "label, prob_0, prob_1\n0, .9, .1\n1, .25, .75\n1, .5, .5\n"),
        ("x.csv", 'prob_1,text,label,prob_0\r\n.1,"a ""b"",\nc",0,.9\r\n'
                  ".75,,1,.25\r\n.5,,1,.5\r\n"),
        ("x.csv", "\ufefflabel,prob_0,prob_1\n0,.9,.1\n\n1,.25,.75\n1,.5,.5"),
        ("x.jsonl", '{"label": 0, "probs": [0.9, 0.1]}\n\n'
                    '{"probs": [0.25, 0.75], "label": 1, "text": "a"}\n'
                    '{"label": 1, "probs": [0.5, 0.5]}'),
    ],
)  # fmt: skip
def test_reads_text(tmp_path, name, text):
    got = prediction_files.read(_write(tmp_path, name, text))
    np.testing.assert_array_equal(got.probs, PROBS)
    np.testing.assert_array_equal(got.labels, LABELS)
    assert got.logits is None and got.dropped == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "text,input_label,label,confidence,prob_no,prob_yes\n"
                  "a,no,no,.9,.9,.1\nb,yes,yes,.75,.25,.75\nc,yes,no,.5,.5,.5\n"
                  "d,,no,.9,.9,.1\n"),
        ("x.csv", "input_label,label,confidence,prob_0,prob_1\n"
                  "0,0,.9,.9,.1\n1,1,.75,.25,.75\n1,0,.5,.5,.5\n,0,.9,.9,.1\n"),
        ("x.jsonl", '{"input_label": 0, "label": "0", "confidence": 0.9, '
                    '"probs": {"0": 0.9, "1": 0.1}}\n'
                    '{"input_label": "1", "label": "1", "confidence": 0.75, '
                    '"probs": {"0": 0.25, "1": 0.75}}\n'
                    '{"input_label": 1.0, "label": null, "confidence": 0.5, '
                    '"probs": {"0": 0.5, "1": 0.5}}\n'
                    '{"input_label": null, "label": "0", "confidence": 0.9, '
                    '"probs": {"0": 0.9, "1": 0.1}}\n'),
    ],
)  # fmt: skip
def test_what_predict_wrote_is_judged_by_the_true_labels(tmp_path, name, text):
    got = prediction_files.read(_write(tmp_path, name, text))
    np.testing.assert_array_equal(got.probs, PROBS)
    np.testing.assert_array_equal(got.labels, LABELS)
    assert got.dropped == 1


def test_reads_ids(tmp_path):
    path = _write(tmp_path, "x.csv", "id,label,prob_0,prob_1\na,-1,1,0\nb,1,0,1\n")
    assert list(prediction_files.read(path).ids) == ["b"]
    text = '{"id": 7, "label": 0, "probs": [1, 0]}'
    assert list(prediction_files.read(_write(tmp_path, "x.jsonl", text)).ids) == ["7"]


def test_reads_npz(tmp_path):
    got = prediction_files.read(_npz(tmp_path, probs=PROBS, labels=LABELS))
    np.testing.assert_array_equal(got.probs, PROBS)
    got = prediction_files.read(_npz(tmp_path, logits=np.log(PROBS) + 3, labels=LABELS))
    np.testing.assert_allclose(got.probs, PROBS, rtol=1e-14)
    np.testing.assert_array_equal(got.logits, np.log(PROBS) + 3)


def test_float16_logits_are_read_in_float64(tmp_path):
    logits = np.log(PROBS).astype(np.float16)
    got = prediction_files.read(_npz(tmp_path, logits=logits, labels=LABELS))
    assert got.probs.dtype == np.float64
    np.testing.assert_allclose(got.probs.sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", "x.csv:1: the columns are none; expected label, prob_0"),
        ("x.csv", "prob_0,prob_1\n1,0\n", r":1: the columns are .*; expected label"),
        ("x.csv", "label,prob_0,prob_2\n0,1,0\n", ":1: the columns .* without gaps"),
        ("x.csv", "label,prob_0\n0,1\n", ":1: the columns are"),
        ("x.csv", "label,prob_0,prob_1\n", "x.csv has no rows"),
        (
            "x.csv",
            "label,prob_0,prob_1\n0,1,0\n0,1\n",
            ":3: the row has 2 fields; expected 3",
        ),
        (
            "x.csv",
            "label,prob_0,prob_1\n0,1,0,0\n",
            ":2: the row has 4 fields; expected 3",
        ),
        ("x.csv", "label,prob_0,prob_1\nyes,1,0\n", ":2: .*'yes'; expected a class"),
        ("x.csv", "label,prob_0,prob_1\n0,1,\n", ":2: .*expected .* numbers"),
        ("x.csv", "label,prob_0,prob_1\n0,1,0\n\n0,nan,0\n", ":4: .*expected finite"),
        (
            "x.csv",
            "label,prob_0,prob_1\n0,1.5,-.5\n",
            ":2: .*no negative .*pass softmax",
        ),
        ("x.csv", "label,prob_0,prob_1\n0,.5,.4\n", ":2: .*a sum of 1 .*pass softmax"),
        (
            "x.csv",
            "label,prob_0,prob_1\n2,.5,.5\n",
            ":2: label 2 is not a class; .*0 to 1",
        ),
        ("x.csv", "label,prob_0,prob_1\n-2,.5,.5\n", ":2: label -2 is not a class"),
        ("x.csv", "label,prob_0,prob_1\n-1,.5,.5\n", "no row .* Add the true labels"),
        ("x.csv", 'label,prob_0,prob_1\n"0,.5,.5\n', ":2: .*expected RFC 4180"),
        (
            "x.csv",
            b"label,prob_0,prob_1\n0,1,\xff\n",
            "x.csv:2: byte 0xff is not UTF-8",
        ),
        ("x.jsonl", "\n", "x.jsonl has no rows"),
        ("x.jsonl", '{"label": 0', ":1: the line is not JSON .*; expected one object"),
        ("x.jsonl", "[0]", ":1: the line is a JSON list; expected one object"),
        ("x.jsonl", "[" * 100_000, ":1: the line is not JSON"),
        ("x.jsonl", '{"probs": [1, 0]}', ":1: label is missing"),
        ("x.jsonl", '{"label": 0}', ":1: probs is missing"),
        ("x.jsonl", '{"label": "0", "probs": [1, 0]}', ":1: label is '0'"),
        ("x.jsonl", '{"label": true, "probs": [1, 0]}', ":1: label is True"),
        ("x.jsonl", '{"label": 0, "probs": 1}', ":1: probs is not a list of numbers"),
        ("x.jsonl", '{"label": 0, "probs": [1, "0"]}', ":1: probs is not a list"),
        (
            "x.jsonl",
            '{"label": 0, "probs": [1]}',
            ":1: the line has 1 probability; expected two or more classes",
        ),
        ("x.jsonl", '{"label": 0, "probs": [1, NaN]}', ":1: .*expected finite numbers"),
        ("x.jsonl", '{"label": 1%s, "probs": [1, 0]}' % ("0" * 30), "is not a class"),
        ("x.jsonl", '{"label": 0, "probs": [1%s, 0]}' % ("0" * 400), "too large"),
        (
            "x.jsonl",
            '{"label": 0, "probs": [1, 0]}\n{"label": 0, "probs": [1, 0, 0]}',
            ":2: the line has 3 probabilities; expected 2, as on line 1",
        ),
        (
            "x.csv",
            "label,confidence,prob_0,prob_1\n0,1,1,0\n",
            "expected the true labels in a column input_label. Add it, or predict",
        ),
        (
            "x.jsonl",
            '{"label": "a", "confidence": 1, "probs": {"a": 1, "b": 0}}',
            "expected the true labels in a column input_label. Add it, or predict",
        ),
        (
            "x.csv",
            "input_label,label,confidence,prob_a,prob_b\nc,a,1,1,0\n",
            ":2: input_label is 'c'; expected one of the classes a, b",
        ),
        (
            "x.jsonl",
            '{"input_label": 0, "label": 0, "confidence": 1, "probs": [1, 0]}',
            ":1: probs is not an object",
        ),
        (
            "x.jsonl",
            '{"input_label": "a", "label": "a", "confidence": 1, "probs": {"a": 1, '
            '"b": 0}}\n{"input_label": "a", "label": "a", "confidence": 1, '
            '"probs": {"b": 0, "a": 1}}',
            r":2: classes are \['b', 'a'\]; expected \['a', 'b'\] as on line 1",
        ),
        ("x.npz", "label", "x.npz is not an .npz file"),
        ("x.npz", b"PK\x03\x04 cut short", "x.npz is not a readable .npz file"),
        ("x.pkl", "", "ends in '.pkl'; expected predictions as .npz, .jsonl"),
    ],
)
def test_refuses_text(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as e:
        prediction_files.read(_write(tmp_path, name, text))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"labels": LABELS},
            r"has the arrays \['labels'\]; expected probs or logits as well$",
        ),
        ({"probs": PROBS}, r"has the arrays \['probs'\]; expected labels as"),
        ({"ids": LABELS}, "expected labels, and probs or logits as well$"),
        ({"probs": PROBS.astype(object), "labels": LABELS}, "contains pickled objects"),
        ({"probs": PROBS, "labels": LABELS.astype(object)}, "contains pickled objects"),
        ({"probs": PROBS[:, :1], "labels": LABELS}, "at least 2 classes"),
        ({"probs": PROBS[0], "labels": LABELS}, r"\(N, Y\)"),
        ({"probs": PROBS.astype(str), "labels": LABELS}, "expected numbers"),
        ({"probs": PROBS, "labels": LABELS[:2]}, "one for each row of probs"),
        (
            {"probs": PROBS, "labels": LABELS / 2},
            "labels is float64.*expected integers",
        ),
        ({"probs": PROBS, "labels": LABELS, "ids": LABELS[:1]}, "ids is .*expected"),
        ({"probs": PROBS[:0], "labels": LABELS[:0]}, "no row with a label .0 rows"),
        ({"probs": PROBS * 2, "labels": LABELS}, "row 0: probs .*a sum of 1"),
        ({"logits": PROBS * np.inf, "labels": LABELS}, "row 0: .*finite numbers"),
        ({"logits": PROBS, "labels": LABELS + 1}, "row 1: label 2 is not a class"),
    ],
)
def test_refuses_npz(tmp_path, arrays, message):
    path = _npz(tmp_path, **arrays)
    with pytest.raises(UserError, match=message) as e:
        prediction_files.read(path)
    assert "\n" not in str(e.value)


def test_logits_next_to_probs_are_ignored_with_a_word(tmp_path, caplog):
    path = _npz(tmp_path, probs=PROBS, logits=PROBS * 9, labels=LABELS)
    found = prediction_files.contents(path)
    assert found.logits is None
    np.testing.assert_array_equal(found.probs, PROBS)
    assert (
        "both probs and logits; probs are used, and logits are ignored" in caplog.text
    )


def test_refuses_what_is_no_file(tmp_path):
    (tmp_path / "x.npz").mkdir()
    for name in ("x.npz", "absent.csv"):
        with pytest.raises(UserError, match=f"{name} is not a file"):
            prediction_files.read(tmp_path / name)


def test_writes_what_it_reads(tmp_path):
    path = tmp_path / "eval" / "predictions.npz"
    logits = np.log(PROBS).astype(np.float32)
    for ids in (None, ["a", "b", "c"], np.array(["a", "b", "c"], object)):
        predictions.write(path, logits, [0, -1, 1], ids)
        got = prediction_files.read(path)
        np.testing.assert_array_equal(got.logits, logits[[0, 2]])
        assert list(got.labels) == [0, 1] and got.dropped == 1
        assert list(got.ids) == ([0, 2] if ids is None else ["a", "c"])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "predictions.npz"
    predictions.write(path, np.log(PROBS), LABELS)
    before = path.read_bytes()

    def full(self, data):
        with self.open("wb") as f:
            f.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(epath.Path(path)), "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        predictions.write(path, np.log(PROBS[:2]), LABELS[:2])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_metrics_of_a_file(tmp_path, caplog):
    path = _write(
        tmp_path,
        "x.csv",
        "label,prob_0,prob_1\n0,.9,.1\n-1,.9,.1\n1,.25,.75\n1,.5,.5\n",
    )
    with caplog.at_level(logging.WARNING):
        got = file_metrics.metrics_of_file(path, bins=5)
    assert got == metrics.compute_all(PROBS, LABELS, 5)
    assert "1 rows without a label are left out" in caplog.text
    with pytest.raises(UserError, match="bins is 0; expected at least 1"):
        file_metrics.metrics_of_file(path, bins=0)


def test_metrics_of_a_file_with_intervals(tmp_path):
    path = _npz(tmp_path, probs=PROBS, labels=LABELS)
    plain = file_metrics.metrics_of_file(path)
    got = file_metrics.metrics_of_file(path, replicas=5)
    assert list(got) == list(plain)
    for name, value in got.items():
        if isinstance(value, dict):
            assert value["low"] <= value["value"] == plain[name] <= value["high"]
        else:
            assert value == plain[name]
    assert isinstance(got["ece"], dict) and got["n"] == 3
    with pytest.raises(UserError, match="replicas is -1; expected at least 2"):
        file_metrics.metrics_of_file(path, replicas=-1)


def test_shares_of_raters_are_read(tmp_path):
    soft = np.array([[0.5, 0.5], [0.25, 0.75], [9, 9]])
    labels = np.array([0, 1, -1])
    path = _npz(tmp_path, probs=PROBS, labels=labels, soft=soft)
    np.testing.assert_array_equal(prediction_files.read(path).soft, soft[:2])
    got = file_metrics.metrics_of_file(path)
    assert got["soft_tv"] == pytest.approx(0.4 / 2)
    path = _npz(tmp_path, logits=PROBS, labels=labels, soft=soft[:, :1])
    with pytest.raises(
        UserError, match=r"soft is float64\[3, 1\]; expected numbers \[3, 2"
    ):
        prediction_files.read(path)
    path = _npz(tmp_path, probs=PROBS, labels=LABELS, soft=soft)
    sums = r"row 2: soft \[9, 9\]; expected a sum of 1 within 0.001$"
    with pytest.raises(UserError, match=sums):
        prediction_files.read(path)
